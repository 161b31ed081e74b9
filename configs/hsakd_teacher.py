"""A teacher for HSAKD: cross-entropy on the images, and after every stage a classifier of class and rotation together.

Paper:    Yang, An, Cai & Xu, Hierarchical Self-supervised Augmented Knowledge Distillation, IJCAI 2021.
Command:  python -m kdjax.train_teacher --config=configs/hsakd_teacher.py:cifar100,resnet32x4,resnet8x4
          then python -m kdjax.train_student --config=configs/student.py:hsakd,resnet32x4,resnet8x4
Expect:   not run with kdjax yet.
Hardware: a GPU or TPU; a step runs the batch in four rotations.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], cifar100 by default; networks that have stages."""
    argument = argument or "cifar100"
    config = common.teacher(argument)
    config.name = common.name("hsakd", argument)
    common.use_auxiliary_classifiers(config.model, common.parse(argument).teacher)
    config.optimizer.nesterov = True
    config.losses = {
        "cross_entropy": {"weight": 1.0, "label_smoothing": 0.0},
        "auxiliary_cross_entropy": {"weight": 1.0},
    }
    return config
