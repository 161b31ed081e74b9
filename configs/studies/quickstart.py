"""kdjax in a minute: three teachers with all labels teach students that have a tenth of them.

Command:  ./launch/quickstart.sh
          or python -m kdjax.run_study --config=configs/studies/quickstart.py --store=runs/quickstart
Expect:   the table and the figure at the top of the README.
Hardware: 2 CPU cores, under 90 seconds.
Publish:  python -m kdjax.publish --config=configs/studies/quickstart.py --store=runs/quickstart writes the README's
          table from the finished runs.

The setting is the one of quickstart_candidates.py that its rule chose on splits 0 to 4. Splits 20 to 29 had no part in
the choice. Students see all images, and the labels of a tenth of them.
"""

from ml_collections import ConfigDict

from configs import common
from configs.studies import quickstart_candidates

CHOSEN = "10 % of labels for students"


def get_config(argument: str | None = None):
    """Argument: none for the study, or 'smoke' for a run of seconds."""
    smoke = common.is_smoke(argument)
    study = ConfigDict()
    study.title = "Quickstart"
    study.results = "" if smoke else "configs/studies/results/quickstart.json"
    study.seeds = 1
    study.splits = (20, 21) if smoke else tuple(range(20, 30))
    study.baseline = "alone"  # the student that others are compared with
    study.teachers = quickstart_candidates.teachers(CHOSEN, argument)
    study.students = quickstart_candidates.students(CHOSEN, argument)
    study.contrasts = (
        *((("", teacher), ("", "CE")) for teacher in ("MSE", "tolerant")),
        *(((student, teacher), (student, "CE")) for student in ("KD", "TTM") for teacher in ("MSE", "tolerant")),
    )
    return study
