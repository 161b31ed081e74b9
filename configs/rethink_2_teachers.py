"""A student of two teachers, weakly or strongly augmented, itself on either view.

Paper:    Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism, 2024 (Expert Systems
          with Applications 262, 2025): label weight 0.2, temperature 10, the mean of the teachers' complete losses.
Command:  python -m kdjax.train_student --config=configs/rethink_2_teachers.py:digits,ws,to_strong
          after the teachers of configs/rethink_teacher.py; a missing one is answered with its command.
Expect:   the paper sees lower fidelity and more diverse attention with stronger views, and better students.
Hardware: digits: 2 CPU cores, a minute. `:cifar100,ws,to_strong` (224x224) wants a GPU or TPU.

`as_released` in the argument takes the values of the released code where they differ, and says each.
"""

from configs import rethink


def get_config(argument: str | None = None):
    """Argument: words of configs/rethink.py, such as 'digits,ws,to_strong'."""
    return rethink.student(argument, 2)
