"""Does a student get worse as its targets leave the Bayes posterior p*? Mixtures of p* with labels, and with 1/classes.

Paper:    Hamidi, Deng, Tan, Ye & Salamah, How to Train the Teacher Model for Effective Knowledge Distillation, ECCV
          2024, its experiment with noisy targets: epsilon * one-hot + (1 - epsilon) * p* on a mixture of Gaussians.
Command:  python -m kdjax.run_study --config=configs/studies/noise.py --store=runs/noise
Expect:   the table in the README.
Hardware: 2 CPU cores, 3 minutes.

The control mixes p* with the uniform distribution, which moves the targets as far without any noise: the squared
distance is about the same at epsilon = 0.5 of labels and 0.6 of the uniform. Students learn from soft targets only,
stop where their validation accuracy is best, and have the learning rate that is best there: uniform targets have small
gradients, so that with one rate for all the control would only show slow learning. No two students share a seed.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.config import defaults


def get_config(argument: str | None = None):
    """Argument: none for the study, or 'smoke' for a run of seconds."""
    smoke = common.is_smoke(argument)
    study = ConfigDict()
    study.kind = "noise"
    study.title = "Targets between the Bayes posterior and labels"
    study.seeds = 1 if smoke else 5
    study.mixes = {
        "labels": (0.0, 1.0) if smoke else (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0),
        "uniform": (0.5,) if smoke else (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 0.95),
    }
    study.rates = (1e-2,) if smoke else (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    study.student = _student(smoke)
    return study


def _student(smoke: bool) -> ConfigDict:
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"n_train": 640 if smoke else 10_000, "n_test": 500 if smoke else 20_000}
    config.data.validation = 0.5
    config.model.args = {"hidden": (16,) if smoke else (128, 128)}
    config.batch_size = 64
    config.eval_batch_size = 5000
    config.epochs = 2 if smoke else 40
    config.eval_every = 1 if smoke else 2
    config.optimizer.learning_rate = 1e-2
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "constant"
    config.checkpoint.every_epochs = 0
    config.losses = {"cross_entropy": {"weight": 1.0}}
    return config
