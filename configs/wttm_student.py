"""A student distilled by weighted transformed teacher matching: soft teachers count for more.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.
Command:  python -m kdjax.train_student --config=configs/wttm_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.4 ± 1.0 % test accuracy on digits (50 runs: the README's table).
Weights:  1 for the labels, the paper's beta and gamma of each pair (configs/published.py); digits see `weigh_digits`.
Hardware: 2 CPU cores, a few seconds. `:cifar100` wants a GPU or TPU; from a CE teacher the paper's resnet8x4 reaches
          76.06 % there.
"""

from configs import common, student


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar10 | cifar100 | imagenet [,TEACHER,STUDENT]."""
    config = student.make("wttm", argument)
    config.teachers = {"a": common.teacher_run(argument, "mse")}
    common.use_digits_weights(config, argument, "wttm", 2.4)
    return config
