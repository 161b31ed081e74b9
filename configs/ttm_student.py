"""A student distilled by transformed teacher matching (TTM): only the teacher has a temperature. From an MSE teacher.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.
Command:  python -m kdjax.train_student --config=configs/ttm_student.py
          after python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   96.2 ± 1.0 % test accuracy on digits (50 runs: configs/studies/quickstart_full.py).
Weights:  1 for the labels, the paper's beta and gamma for each pair (configs/published.py); on digits those of
          `use_digits_weights` in configs/common.py.
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU; from a CE teacher the paper's resnet8x4 reaches
          76.17 %.
"""

from configs import common, student


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    config = student.make("ttm", argument)
    config.teachers = {"a": common.teacher_run(argument, "mse")}
    common.use_digits_weights(config, argument, "ttm", 3.6)
    return config
