"""Eight small experiments, of which the quickstart shows the one in which distillation's gain is clearest.

Command:  python -m kdjax.run_study --config=configs/studies/quickstart_candidates.py --store=runs/candidates
Expect:   a table of every candidate on splits 0 to 4. These choose the experiment; they do not show that it holds.
Hardware: 2 CPU cores, minutes.

Rule, written before the first run: a candidate's gain is the accuracy of its six students (KD and TTM from a CE, an MSE
and a tolerant teacher), averaged, minus that of the student alone with the same seed and split. The candidate with the
largest lower end of the 95 % interval of this gain over the five splits is frozen, and the quickstart tells it once, on
splits 20 to 29. If the lower end there is not above zero, the README says so, and the next candidate is told on splits
30 to 39. Splits 5 to 14 were looked at before.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher, common, kd_student, mse_teacher, tolerant_teacher, ttm_student

TEACHERS = {"CE": ce_teacher, "MSE": mse_teacher, "tolerant": tolerant_teacher}
STUDENTS = {"alone": alone_student, "KD": kd_student, "TTM": ttm_student}


def _few_labels(config: ConfigDict, is_teacher: bool, percent: int) -> None:
    """Teachers and 'alone' learn from the labelled images only; distilled students see the others without labels."""
    kept = "drop" if is_teacher or not config.teachers else "keep"
    config.data.protocols = {"labelled_fraction": {"fraction": percent / 100, "unlabelled": kept}}


def _few_labels_for_students(config: ConfigDict, is_teacher: bool, percent: int) -> None:
    """Teachers have all labels, students a part of them."""
    if not is_teacher:
        _few_labels(config, is_teacher, percent)
        for teacher in config.teachers.values():
            teacher.more_labels = True


def _narrow(config: ConfigDict, is_teacher: bool, width: int) -> None:
    """The student's hidden layer has another width."""
    if not is_teacher:
        config.model.args = {"hidden": (width,)}


def _noisy(config: ConfigDict, is_teacher: bool, percent: int) -> None:
    """Teachers and students learn from labels of which a part is wrong."""
    del is_teacher
    config.data.protocols = {"label_noise": {"rate": percent / 100}}


def _gaussian(config: ConfigDict, is_teacher: bool, draws: int) -> None:
    """A thousand draws of a mixture of Gaussians, on which classes overlap; the student has 32 hidden units."""
    config.data.name = "gaussian"
    config.data.args = {"n_train": 2 * draws, "n_test": 10_000}
    config.data.validation = 0.5
    if not is_teacher:
        config.model.args = {"hidden": (32,)}


# Name of a candidate -> what it changes in a config of digits, and by how much.
CANDIDATES = {
    "5 % of labels": (_few_labels, 5),
    "10 % of labels": (_few_labels, 10),
    "25 % of labels": (_few_labels, 25),
    "10 % of labels for students": (_few_labels_for_students, 10),
    "6 hidden units": (_narrow, 6),
    "4 hidden units": (_narrow, 4),
    "30 % wrong labels": (_noisy, 30),
    "1,000 Gaussian draws": (_gaussian, 1000),
}


def get_config(argument: str | None = None):
    """Argument: none for the study, or 'smoke' for a run of seconds."""
    smoke = common.is_smoke(argument)
    study = ConfigDict()
    study.title = "Candidates for the quickstart"
    study.seeds = 1
    study.splits = (0, 1) if smoke else (0, 1, 2, 3, 4)
    study.baseline = "alone"
    names = ("25 % of labels", "6 hidden units") if smoke else tuple(CANDIDATES)
    study.teachers = {
        f"{name}: {label}": config for name in names for label, config in teachers(name, argument).items()
    }
    study.students = {
        f"{name}: {label}": config for name in names for label, config in students(name, argument).items()
    }
    return study


def teachers(name: str, argument: str | None) -> dict[str, ConfigDict]:
    """Returns label -> config of the teachers of a candidate."""
    return {label: _changed(module, name, True, argument) for label, module in TEACHERS.items()}


def students(name: str, argument: str | None) -> dict[str, ConfigDict]:
    """Returns label -> config of the students of a candidate."""
    return {label: _changed(module, name, False, argument) for label, module in STUDENTS.items()}


def _changed(module, name: str, is_teacher: bool, argument: str | None) -> ConfigDict:
    """Returns a teacher's or a student's config with the changes of a candidate."""
    config = module.get_config(argument)
    config.name += f"-{name.replace(' ', '_').replace(',', '').replace('%', 'percent')}"
    change, amount = CANDIDATES[name]
    change(config, is_teacher, amount)
    return config
