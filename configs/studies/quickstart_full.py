"""The experiment of quickstart.py at full length on all labels: ten seeds on each of five splits of digits.

Command:  ./launch/study.sh quickstart_full
Expect:   every difference lies inside the noise; configs/studies/README.md has the figures.
Hardware: 2 CPU cores, under 4 minutes.

Every seed is run on every split; students learn from the teachers of their own seed and split.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher, kd_student, mse_teacher, ttm_student, wttm_student


def get_config(argument: str | None = None):
    """Argument: digits | smoke."""
    smoke = argument == "smoke"
    students = ("KD", "TTM", "WTTM")
    study = ConfigDict()
    study.title = "Quickstart, at full length"
    study.seeds = 1 if smoke else 10
    study.splits = (5, 6) if smoke else (5, 6, 7, 8, 9)  # hyper-parameters were chosen on splits 0 to 4
    study.baseline = "alone"  # the student that others are compared with
    study.teachers = {"CE": ce_teacher.get_config(argument), "MSE": mse_teacher.get_config(argument)}
    study.students = {
        "alone": alone_student.get_config(argument),
        "KD": kd_student.get_config(argument),
        "TTM": ttm_student.get_config(argument),
        "WTTM": wttm_student.get_config(argument),
    }
    study.contrasts = (
        (("", "MSE"), ("", "CE")),
        *(((student, "MSE"), (student, "CE")) for student in students),
        *(((student, teacher), ("KD", teacher)) for student in ("TTM", "WTTM") for teacher in ("CE", "MSE")),
    )
    return study
