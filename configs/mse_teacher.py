"""A teacher trained to teach: mean squared error between its softmax output and the one-hot label.

Paper:    Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation, ECCV 2024.
Command:  python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   97.1 ± 0.7 % test accuracy on digits (50 runs: the README's table).
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 [,TEACHER,STUDENT]."""
    config = common.teacher(argument)
    config.name = common.name("mse", argument)
    config.losses = {"softmax_mse": {"weight": 1.0, "space": "probs", "reduction": "class_sum"}}
    return config
