"""A student trained with cross-entropy and without a teacher: the baseline of every distilled student.

Command:  python -m kdjax.train_student --config=configs/alone_student.py
Expect:   96.2 ± 1.0 % test accuracy on digits (50 runs: configs/studies/quickstart_full.py).
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU; the papers' resnet8x4 reaches 72.50 %.
"""

from configs import student


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    return student.make("alone", argument)
