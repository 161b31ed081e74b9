"""Does a teacher nearer to the Bayes posterior make better students? The toy experiment, with controls.

Paper:    Hamidi, Deng, Tan, Ye & Salamah, How to Train the Teacher Model for Effective Knowledge Distillation, ECCV
          2024: a mixture of ten Gaussians in 30 dimensions, MLPs 30-128-128-10 as teacher and student.
Command:  python -m kdjax.run_study --config=configs/studies/gaussian_posterior.py --store=runs/gaussian_posterior
Expect:   the table in the README. An earlier run of a similar experiment found the MSE teacher nearer to p* with a
          fixed budget, and its students no better.
Hardware: 2 CPU cores, under 15 minutes.

Teachers: cross-entropy and MSE with the same budget (the paper's rate, the last of 100 epochs), and each at its own
best rate, stopped where validation accuracy is best. Controls: cross-entropy calibrated by a temperature that is fitted
on validation; label smoothing and confidence penalty of the strength that comes nearest to the MSE teacher's mean
entropy; p* itself. Rates and strengths are chosen on validation with seeds that are not reported. Students learn from
the teacher only (KD at T = 1, as in the paper; WTTM) and are stopped by validation accuracy.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.config import defaults

CONTRASTS = (
    ("MSE, fixed budget", "CE, fixed budget"),
    ("MSE, stopped", "CE, stopped"),
    ("CE, stopped, calibrated", "CE, stopped"),
    ("label smoothing, stopped", "CE, stopped"),
    ("confidence penalty, stopped", "CE, stopped"),
    ("p*", "CE, stopped"),
)
# The MSE teacher's entropy is a little above that of cross-entropy: strengths as small as these enclose it.
SMOOTHINGS = (0.01, 0.02, 0.03, 0.05, 0.1)
PENALTIES = (0.02, 0.04, 0.06, 0.1, 0.2)


def get_config(argument: str | None = None):
    """Argument: none for the study, or 'smoke' for a run of seconds."""
    study = ConfigDict()
    study.kind = "posterior"
    study.title = "Nearer to the posterior, better students?"
    study.seeds = 5
    study.student_seeds = 3
    study.select_seeds = 2
    study.fixed_rate = 5e-4  # the paper's, for every loss
    study.rates = {
        "cross_entropy": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
        "softmax_mse": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    }
    study.softened = {
        "label smoothing": tuple(_smoothed(strength) for strength in SMOOTHINGS),
        "confidence penalty": tuple(_penalized(strength) for strength in PENALTIES),
    }
    study.teacher = _mlp(epochs=100)
    study.student = _mlp(epochs=60)
    study.methods = {
        "alone": {"cross_entropy": {"weight": 1.0}},
        "KD": {"kd": {"weight": 1.0, "temperature": 1.0}},
        "WTTM": {"wttm": {"weight": 1.0, "gamma": 0.5, "normalize": "batch_mean"}},
    }
    study.alone = ("alone",)
    study.contrasts = CONTRASTS
    if common.is_smoke(argument):
        _shorten(study)
    return study


def _smoothed(strength: float) -> dict:
    return {"cross_entropy": {"weight": 1.0, "label_smoothing": strength}}


def _penalized(strength: float) -> dict:
    return {"cross_entropy": {"weight": 1.0}, "confidence_penalty": {"weight": strength}}


def _mlp(epochs: int) -> ConfigDict:
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"n_train": 10_000, "n_test": 20_000}
    config.data.validation = 0.5
    config.model.args = {"hidden": (128, 128)}
    config.batch_size = 32
    config.eval_batch_size = 5000
    config.epochs = epochs
    config.eval_every = 2
    config.optimizer.learning_rate = 5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "constant"
    config.checkpoint.every_epochs = 0
    config.losses = {"cross_entropy": {"weight": 1.0}}
    return config


def _shorten(study: ConfigDict) -> None:
    """Leaves seconds of the study, which run all of its code."""
    study.seeds = 1
    study.student_seeds = 1
    study.select_seeds = 1
    study.rates = {"cross_entropy": (5e-4,), "softmax_mse": (5e-4,)}
    study.softened = {"label smoothing": (_smoothed(0.2),)}
    study.methods = {"alone": study.methods["alone"], "KD": study.methods["KD"]}
    study.contrasts = CONTRASTS[1:2]
    for config in (study.teacher, study.student):
        config.data.args = {"n_train": 640, "n_test": 500}
        config.model.args = {"hidden": (16,)}
        config.epochs = 2
        config.eval_every = 1
