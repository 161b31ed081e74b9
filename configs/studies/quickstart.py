"""The main job in minutes: two ways to train a teacher, three ways to learn from it, one student alone.

Command:  ./launch/quickstart.sh
          or python -m kdjax.run_study --config=configs/studies/quickstart.py --store=runs/quickstart
Expect:   the table on the README's first screen.
Hardware: 2 CPU cores, under 4 minutes.

Every seed is run on every split; students learn from the teachers of their own seed and split.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher, kd_student, mse_teacher, ttm_student, wttm_student


def get_config(argument: str | None = None):
    """Argument: digits | smoke."""
    study = ConfigDict()
    study.title = "Quickstart"
    smoke = argument == "smoke"
    study.seeds = 1 if smoke else 10
    study.splits = (5, 6) if smoke else (5, 6, 7, 8, 9)  # splits 0 to 4 were for choosing
    study.baseline = "alone"  # what the differences are against
    study.teachers = {"CE": ce_teacher.get_config(argument), "MSE": mse_teacher.get_config(argument)}
    study.students = {
        "alone": alone_student.get_config(argument),
        "KD": kd_student.get_config(argument),
        "TTM": ttm_student.get_config(argument),
        "WTTM": wttm_student.get_config(argument),
    }
    students = ("KD", "TTM", "WTTM")
    mse_against_ce = tuple(((student, "MSE"), (student, "CE")) for student in students)
    against_kd = tuple(
        ((student, teacher), ("KD", teacher)) for student in ("TTM", "WTTM") for teacher in ("CE", "MSE")
    )
    study.contrasts = ((("", "MSE"), ("", "CE")), *mse_against_ce, *against_kd)
    return study
