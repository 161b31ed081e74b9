"""Do low fidelity and diverse attention go with better students? Teams of weakly and strongly augmented teachers.

Paper:    Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism, 2024 (Expert Systems
          with Applications 262, 2025): one to three teachers, each on weak or strong views, students on either view.
Command:  python -m kdjax.run_study --config=configs/studies/attention_fidelity.py --store=runs/attention
Expect:   the table in the README.
Hardware: 2 CPU cores, under 20 minutes. `:cifar100` (224x224, the paper's networks) needs GPUs or TPUs.

A team has a letter for each teacher: 'ws' is a weak and a strong one. Every seed has its own data split, three teachers
of each view, a student of every team on either view, and a student without teachers on either view. The recipe is that
of configs/rethink.py, on digits with two thirds of its epochs.
"""

from ml_collections import ConfigDict

from configs import rethink

EPOCHS = {"digits": ((14, (11,)), (20, (16,)))}  # data set -> teacher's and student's (epochs, milestones)


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar100."""
    words = rethink.parse(argument, 1)
    smoke = words.dataset == "smoke"
    views = {"w": "to_weak", "s": "to_strong"}
    study = ConfigDict()
    study.kind = "attention_fidelity"
    study.title = "Attention and fidelity of students with augmented teachers"
    study.seeds = (1,) if smoke else (1, 2, 3, 4, 5)  # of students and of data splits
    study.teams = ("w", "ss") if smoke else ("w", "s", "ww", "ws", "ss", "www", "sss")
    study.teachers = {view: rethink.teacher(view, 1, words) for view in views}
    study.students = {view: rethink.student(f"{words.dataset},w,{to}", 1) for view, to in views.items()}
    study.alone = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}
    for group, schedule in zip((study.teachers, study.students), EPOCHS.get(words.dataset, ()), strict=False):
        for config in group.values():
            config.epochs, config.schedule.milestones = schedule
    return study
