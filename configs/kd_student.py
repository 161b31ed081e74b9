"""A student distilled with the same temperature for teacher and student (KD), from an MSE teacher.

Paper:    Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015; weights of RepDistiller.
Command:  python -m kdjax.train_student --config=configs/kd_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.4 ± 0.9 % test accuracy on digits (50 runs: configs/studies/quickstart_full.py).
Weights:  0.1 for the labels and 0.9 for KD at T = 4; on ImageNet 0.5 and 0.5 at T = 1 (configs/student.py).
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU; from a CE teacher the papers' resnet8x4 reaches
          73.33 %.
"""

from configs import common, student


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    config = student.make("kd", argument)
    config.teachers = {"a": common.teacher_run(argument, "mse")}
    return config
