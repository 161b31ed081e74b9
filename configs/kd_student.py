"""A student distilled at a common temperature.

Paper:    Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015; weights of RepDistiller.
Command:  python -m kdjax.train_student --config=configs/kd_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.4 ± 0.9 % test accuracy on digits (50 runs: the README's table).
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; from a CE teacher the papers' resnet8x4 reaches
          73.33 % there.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 [,TEACHER,STUDENT]."""
    config = common.student(argument)
    config.name = common.name("kd", argument)
    config.teachers = {"a": common.mse_teacher_run(argument)}
    config.losses = {
        "cross_entropy": {"weight": 0.1, "label_smoothing": 0.0},
        "kd": {"weight": 0.9, "temperature": 4.0},
    }
    return config
