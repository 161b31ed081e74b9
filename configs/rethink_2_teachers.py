"""A student of two teachers with weak or strong augmentation; the student's own view is weak or strong as well.

Paper:    Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism, 2024 (Expert Systems
          with Applications 262, 2025): label weight 0.2, temperature 10, mean of the teachers' complete losses.
Command:  python -m kdjax.train_student --config=configs/rethink_2_teachers.py:digits,ws,to_strong
          after the teachers of configs/rethink_teacher.py. If one is missing, the error has the command that trains it.
Expect:   in the paper stronger views give lower fidelity, more diverse attention and better students.
Hardware: digits: 2 CPU cores, a minute. `:cifar100,ws,to_strong` (224x224) needs a GPU or TPU.

`as_released` in the argument uses the values of the released code where they differ from the paper's. Each of them is
shown when the run starts.
"""

from configs import rethink


def get_config(argument: str | None = None):
    """Argument: [DATASET][,VIEWS][,to_weak|to_strong][,as_released], such as 'digits,ws,to_strong'."""
    return rethink.student(argument, 2)
