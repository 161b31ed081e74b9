"""A student trained alone, with cross-entropy: what every distilled student has to beat.

Command:  python -m kdjax.train_student --config=configs/alone_student.py
Expect:   96.2 ± 1.0 % test accuracy on digits (50 runs: the README's table).
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; the papers' resnet8x4 reaches 72.50 % there.
"""

from configs import student


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 | imagenet [,TEACHER,STUDENT]."""
    return student.make("alone", argument)
