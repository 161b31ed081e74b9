"""A tolerant teacher: cross-entropy and a penalty on the gap between the highest probability and the next ones.

Paper:    Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations, 2018 (arXiv 1805.05551). The paper's
          eta is not known; 0.6 is a starting point.
Command:  python -m kdjax.train_teacher --config=configs/tolerant_teacher.py
Expect:   97.3 ± 0.7 % test accuracy on digits (10 runs: 2 seeds on each of splits 5 to 9).
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    config = common.teacher(argument)
    config.name = common.name("tolerant", argument)
    config.losses = {"tolerant": {"weight": 1.0, "num_top": 5, "eta": 0.6}}
    return config
