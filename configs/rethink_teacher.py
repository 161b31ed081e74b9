"""A teacher trained with weak or strong augmentation, for the students of rethink_{1,2,3}_teachers.py.

Paper:    Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism, 2024 (Expert Systems
          with Applications 262, 2025). Its teachers start from ImageNet weights; --config.init_from=RUN does that.
Command:  python -m kdjax.train_teacher --config=configs/rethink_teacher.py:digits,s --run=digits/resnet14-rethink-s-s1
Expect:   in the paper a strong view makes a better teacher. The README of configs/studies/ has what was measured here.
Hardware: digits: 2 CPU cores, a minute. `:cifar100,w` (224x224, ResNet-50) needs a GPU or TPU.
"""

from configs import rethink


def get_config(argument: str | None = None):
    """Argument: [DATASET][,w|s][,1|2|3][,as_released]; the number is the teacher's place, which is its seed."""
    words = rethink.parse(argument, 1, places=("1", "2", "3"))
    return rethink.teacher(words.teachers, words.place, words)
