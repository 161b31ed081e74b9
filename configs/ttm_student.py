"""A student distilled by transformed teacher matching: the student's own temperature is dropped.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.
Command:  python -m kdjax.train_student --config=configs/ttm_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.2 ± 1.0 % test accuracy on digits (50 runs: the README's table).
Weights:  1 for the labels, the paper's beta and gamma of each pair (configs/published.py); digits see `weigh_digits`.
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; from a CE teacher the paper's resnet8x4 reaches
          76.17 % there.
"""

from configs import common, student


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 | imagenet [,TEACHER,STUDENT]."""
    config = student.make("ttm", argument)
    config.teachers = {"a": common.teacher_run(argument, "mse")}
    common.use_digits_weights(config, argument, "ttm", 3.6)
    return config
