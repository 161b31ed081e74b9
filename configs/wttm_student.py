"""A student distilled by weighted transformed teacher matching: soft teachers count for more.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.
Command:  python -m kdjax.train_student --config=configs/wttm_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.4 ± 1.0 % test accuracy on digits (50 runs: the README's table).
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; from a CE teacher the paper's resnet8x4 reaches
          76.06 % there.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 [,TEACHER,STUDENT]."""
    config = common.student(argument)
    config.name = common.name("wttm", argument)
    config.teachers = {"a": common.mse_teacher_run(argument)}
    _, (gamma, beta) = common.pair(argument) or (None, (0.25, 2.4))
    config.losses = {
        "cross_entropy": {"weight": common.label_weight(argument), "label_smoothing": 0.0},
        "wttm": {"weight": beta, "gamma": gamma, "normalize": "none"},
    }
    return config
