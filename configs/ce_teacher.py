"""A teacher trained with cross-entropy, as in all tables of the distillation papers.

Paper:    Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).
Command:  python -m kdjax.train_teacher --config=configs/ce_teacher.py
Expect:   97.3 ± 0.6 % test accuracy on digits (50 runs: configs/studies/quickstart_full.py).
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU; the papers' resnet32x4 reaches 79.42 %.
"""

from configs import common, published


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    config = common.teacher(argument)
    config.name = common.name("ce", argument)
    config.losses = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}
    published.state(config, "teacher", *common.parse(argument))
    return config
