"""A teacher trained on weakly or strongly augmented images, for the students of rethink_{1,2,3}_teachers.

Paper:    Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism, 2024 (Expert Systems
          with Applications 262, 2025). Its teachers begin from ImageNet weights: --config.init_from=RUN does that.
Command:  python -m kdjax.train_teacher --config=configs/rethink_teacher.py:digits,s --run=digits/resnet14-rethink-s-s1
Expect:   a strong view makes a better teacher in the paper; the README tells what was seen here.
Hardware: digits: 2 CPU cores, a minute. `:cifar100,w` (224x224, ResNet-50) wants a GPU or TPU.
"""

from configs import rethink


def get_config(argument: str | None = None):
    """Argument: words of configs/rethink.py, one letter 'w' or 's', and the teacher's place 1, 2 or 3."""
    given = [word for word in (argument or "").split(",") if word]
    places = [word for word in given if word in ("1", "2", "3")]
    words = rethink.parse(",".join(word for word in given if word not in places) or None, 1)
    return rethink.teacher(words.teachers, int(places[0]) if places else 1, words)
