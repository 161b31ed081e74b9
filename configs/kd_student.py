"""A student distilled at a common temperature.

Paper:    Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015; weights of RepDistiller.
Command:  python -m kdjax.train_student --config=configs/kd_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.4 ± 0.9 % test accuracy on digits (50 runs: the README's table).
Weights:  0.1 for the labels and 0.9 for KD at T = 4; ImageNet 0.5 and 0.5 at T = 1 (configs/student.py).
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; from a CE teacher the papers' resnet8x4 reaches
          73.33 % there.
"""

from configs import common, student


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 | imagenet [,TEACHER,STUDENT]."""
    config = student.make("kd", argument)
    config.teachers = {"a": common.teacher_run(argument, "mse")}
    return config
