"""Does a teacher nearer to the Bayes posterior make better students? The toy experiment, with its controls.

Paper:    Hamidi, Deng, Tan, Ye & Salamah, How to Train the Teacher Model for Effective Knowledge Distillation, ECCV
          2024: a mixture of ten Gaussians in 30 dimensions, MLPs 30-128-128-10 as teacher and student.
Command:  python -m kdjax.run_study --config=configs/studies/gaussian_posterior.py --store=runs/gaussian_posterior
Expect:   the table in the README; an earlier run of a similar experiment found the MSE teacher nearer to p* at a
          fixed budget and its students no better.
Hardware: 2 CPU cores, under 15 minutes.

Teachers: cross-entropy and MSE with the same budget (the paper's rate, the last of 100 epochs), and each at its own
best rate, stopped where validation accuracy is best. Controls: cross-entropy calibrated by a temperature fitted on
validation; label smoothing and confidence penalty of the strength that comes nearest to the MSE teacher's mean entropy;
p* itself. Rates and strengths are chosen on validation with seeds that are not reported. Students learn from the
teacher alone (KD at T = 1, as in the paper; WTTM), stopped by validation accuracy.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.config import defaults


def get_config(argument: str | None = None):
    """Argument: none, or 'smoke' for seconds of it."""
    smoke = common.is_smoke(argument)
    study = ConfigDict()
    study.kind, study.title = "posterior", "Nearer to the posterior, better students?"
    study.seeds, study.student_seeds, study.select_seeds = (1, 1, 1) if smoke else (5, 3, 2)
    study.fixed_rate = 5e-4  # the paper's, for every loss
    study.rates = {
        "cross_entropy": (5e-4,) if smoke else (1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
        "softmax_mse": (5e-4,) if smoke else (2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    }
    # The MSE teacher's entropy lies a little above cross-entropy's own: steps this small enclose it.
    smoothings = (0.2,) if smoke else (0.01, 0.02, 0.03, 0.05, 0.1)
    penalties = (0.3,) if smoke else (0.02, 0.04, 0.06, 0.1, 0.2)
    study.softened = {
        "label smoothing": tuple({"cross_entropy": {"weight": 1.0, "label_smoothing": s}} for s in smoothings),
        "confidence penalty": tuple(
            {"cross_entropy": {"weight": 1.0}, "confidence_penalty": {"weight": p}} for p in penalties
        ),
    }
    if smoke:
        study.softened = {"label smoothing": study.softened["label smoothing"]}
    study.teacher = _mlp(2 if smoke else 100, smoke)
    study.student = _mlp(2 if smoke else 60, smoke)
    study.methods = {
        "alone": {"cross_entropy": {"weight": 1.0}},
        "KD": {"kd": {"weight": 1.0, "temperature": 1.0}},
        "WTTM": {"wttm": {"weight": 1.0, "gamma": 0.5, "normalize": "batch_mean"}},
    }
    if smoke:
        study.methods = {"alone": study.methods["alone"], "KD": study.methods["KD"]}
    study.alone = ("alone",)
    study.contrasts = (
        (("MSE, stopped", "CE, stopped"),)
        if smoke
        else (
            ("MSE, fixed budget", "CE, fixed budget"),
            ("MSE, stopped", "CE, stopped"),
            ("CE, stopped, calibrated", "CE, stopped"),
            ("label smoothing, stopped", "CE, stopped"),
            ("confidence penalty, stopped", "CE, stopped"),
            ("p*", "CE, stopped"),
        )
    )
    return study


def _mlp(epochs: int, smoke: bool) -> ConfigDict:
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"n_train": 640 if smoke else 10_000, "n_test": 500 if smoke else 20_000}
    config.data.validation = 0.5
    config.model.args = {"hidden": (16,) if smoke else (128, 128)}
    config.batch_size, config.eval_batch_size, config.epochs = 32, 5000, epochs
    config.eval_every = 1 if smoke else 2
    config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay = 5e-4, 0.9, 0.0
    config.schedule.name = "constant"
    config.checkpoint.every_epochs = 0
    config.losses = {"cross_entropy": {"weight": 1.0}}
    return config
