"""A student that learns its teacher as a function: both see the same mixed images, no labels, a very long schedule.

Paper:    Beyer, Zhai, Royer, Markeeva, Anil & Kolesnikov, Knowledge Distillation: A Good Teacher is Patient and
          Consistent, CVPR 2022. The epochs and learning rates for these small images are kdjax's own.
Command:  python -m kdjax.train_student --config=configs/function_matching.py:cifar100
          after python -m kdjax.train_teacher --config=configs/ce_teacher.py:cifar100
Expect:   in the paper the gains come after hundreds of epochs; no run of that length has been made with kdjax yet.
Hardware: a GPU or TPU for CIFAR; digits: 2 CPU cores, a minute.
"""

from configs import common


def get_config(argument: str | None = None):
    """Argument: [DATASET][,TEACHER,STUDENT]; smoke has vectors, which are not mixed."""
    config = common.student(argument)
    config.name = common.name("function-matching", argument)
    config.teachers = {"a": common.teacher_run(argument, "ce")}
    config.losses = {"kd": {"weight": 1.0, "temperature": 1.0}}
    dataset = common.parse(argument).dataset
    if dataset != "smoke":
        mirrored = dataset.startswith("cifar")
        config.data.view = "rrc_flip:0.25+mixup:1" if mirrored else "crop+mixup:1"
        config.epochs = 1200 if mirrored else 400
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 1e-4
        config.schedule.name = "cosine"
        config.schedule.milestones = ()
    return config
