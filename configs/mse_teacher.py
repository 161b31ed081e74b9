"""A teacher trained with the mean squared error between its softmax output and the one-hot label.

Paper:    Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation, ECCV 2024.
Command:  python -m kdjax.train_teacher --config=configs/mse_teacher.py
Expect:   97.1 ± 0.7 % test accuracy on digits (50 runs: configs/studies/quickstart_full.py).
Hardware: 2 CPU cores, a few seconds. `:cifar100` needs a GPU or TPU.

The paper's learning rate for CIFAR-100 is not known, so kdjax has its own. At a uniform output the gradient of this
loss is 2/K times that of cross-entropy, so that 0.05, which suits cross-entropy, is slow for 100 classes. The rate was
selected by validation accuracy on a stand-in for CIFAR-100: resnet20, 840 steps of 64, 9,000 CIFAR-10 images in 100
classes (each class divided into 10 clusters by colour and shape), 1,000 of them for validation. A uniform output has a
loss of 0.990; cross-entropy at 0.05 reaches a top-1 accuracy of 34.6 % after the 840 steps.
  rate  0.05  0.1   0.2   0.5
  loss  0.951 0.927 0.918 0.924
  top-1 12.8  17.9  19.9  19.8 % (± 1.2)
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], a data set being digits, smoke, cifar10, cifar100 or imagenet."""
    config = common.teacher(argument)
    config.name = common.name("mse", argument)
    config.losses = {"softmax_mse": {"weight": 1.0, "space": "probs", "reduction": "class_sum"}}
    if common.parse(argument).dataset == "cifar100":
        config.optimizer.learning_rate = 0.2
    return config
