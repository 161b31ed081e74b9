"""How near do teachers come to what people see? Cross-entropy, MSE and tolerant teachers against human labels.

Paper:    Hamidi et al., ECCV 2024 (the claim); Peterson, Battleday, Griffiths & Russakovsky, Human Uncertainty Makes
          Classification More Robust, ICCV 2019 (CIFAR-10H: about 51 people per image; CC BY-NC-SA, not part of kdjax).
Command:  python -m kdjax.prepare_data cifar10 && python -m kdjax.prepare_data cifar10h
          python -m kdjax.run_study --config=configs/studies/human_posterior.py --store=runs/human
Expect:   the table in the README.
Hardware: 2 CPU cores, half an hour.

Half of the 10,000 human-labelled images trains teachers and students with their hard labels (250 images of each class
of it); the other half is the test set. Distances are reported separately for images that were seen in training and
images that were not, since students learn from what the teacher says of images that it has seen. Every teacher has its
own best learning rate by validation accuracy, on a seed that is not reported. Human labels choose nothing.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.config import defaults

LOSSES = {
    "CE": {"cross_entropy": {"weight": 1.0}},
    "MSE": {"softmax_mse": {"weight": 1.0}},
    "tolerant": {"tolerant": {"weight": 1.0, "num_top": 5, "eta": 0.6}},
}
KD = {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}


def get_config(argument: str | None = None):
    """Argument: none for the study, or 'smoke' for runs of one epoch."""
    smoke = common.is_smoke(argument)
    study = ConfigDict()
    study.kind = "human"
    study.title = "How near do teachers come to what people see?"
    study.raters = 51
    study.rates = (0.05,) if smoke else (0.05, 0.2, 0.5, 1.0)
    study.seeds = 1 if smoke else 3
    study.splits = (0,)
    study.baseline = "alone"
    study.teachers = {name: _config(name.lower(), losses, smoke) for name, losses in LOSSES.items()}
    study.students = {"alone": _config("alone", LOSSES["CE"], smoke), "KD": _config("kd", KD, smoke)}
    study.students.KD.teachers = {"a": {"run": "set by the study", "weight": 1.0}}
    study.contrasts = tuple(
        ((student, name), (student, "CE")) for student in ("", "KD") for name in ("MSE", "tolerant")
    )
    return study


def _config(name: str, losses: dict, smoke: bool) -> ConfigDict:
    config = defaults()
    config.name = name
    config.data.name = "cifar10h"
    config.data.args = {"test": 0.5}
    config.data.validation = 0.1
    config.data.view = "crop_flip"
    config.data.protocols = {"subset": {"per_class": 20 if smoke else 250}}
    config.model.name = "resnet8"
    config.epochs = 1 if smoke else 25
    config.batch_size = 64
    config.eval_batch_size = 500
    config.eval_every = 5
    config.optimizer.learning_rate = 0.2  # of students: the best rate of the cross-entropy teacher
    config.schedule.name = "cosine"
    config.checkpoint.every_epochs = 0
    config.losses = losses
    return config
