"""A teacher for SSKD: a trained teacher, of which a second head learns to find each image among its rotations.

Paper:    Xu, Liu, Li & Loy, Knowledge Distillation Meets Self-Supervision, ECCV 2020.
Command:  python -m kdjax.train_teacher --config=configs/ce_teacher.py:cifar100,resnet32x4,resnet8x4
          then python -m kdjax.train_teacher --config=configs/sskd_teacher.py:cifar100,resnet32x4,resnet8x4
          then python -m kdjax.train_student --config=configs/student.py:sskd,resnet32x4,resnet8x4
Expect:   the accuracy of the first teacher, whose weights stay; not run with kdjax yet.
Hardware: a GPU or TPU; a step runs the batch in four rotations, forward only but for the head.
"""

from configs import common

EPOCHS, MILESTONES = 60, (30, 45)


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT], cifar100 by default."""
    argument = argument or "cifar100"
    config = common.teacher(argument)
    config.name = common.name("sskd", argument)
    config.init_from = common.teacher_run(argument, "ce")["run"]
    common.use_views(config.model)
    config.model.head, config.trainable = "projection", "head"
    config.epochs = min(EPOCHS, config.epochs)
    config.optimizer.learning_rate = 0.05
    if config.schedule.name == "step":
        config.schedule.milestones = MILESTONES
    config.select = "last"
    config.losses = {"view_cross_entropy": {"weight": 1.0}}
    return config
