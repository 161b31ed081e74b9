"""How many labels does distillation need? Teachers that learn from a part of the labels, students that see all images.

Paper:    Hamidi, Deng, Tan, Ye & Salamah, How to Train the Teacher Model for Effective Knowledge Distillation, ECCV
          2024, Figure 2. Its splits and weights are not known: the protocol is kdjax's own.
Command:  python -m kdjax.run_study --config=configs/studies/semi_supervised.py --store=runs/semi_supervised
          or --config=configs/studies/semi_supervised.py:cifar100,resnet32x4,resnet8x4 on a GPU
Expect:   students that see the unlabelled images gain most where labels are few; the README has the result.
Hardware: digits: 2 CPU cores, minutes. CIFAR-100 needs a GPU or TPU.

For every fraction of labels: CE and MSE teachers trained on the labelled images; 'alone', the student on the labelled
images; 'KD labelled', the student distilled on these only; 'KD', with cross-entropy on labelled and distillation on all
images. An epoch has the same number of steps for every fraction.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher, kd_student, mse_teacher

PERCENT = (5, 10, 25, 50, 100)


def get_config(argument: str | None = None):
    """Argument: that of configs/kd_student.py, such as digits | smoke | cifar100,TEACHER,STUDENT."""
    smoke = argument == "smoke"
    contrasts = []
    study = ConfigDict()
    study.title = "Few labels"
    study.seeds = 1 if smoke else 3
    study.splits = (0,) if smoke else (0, 1, 2)
    study.baseline = "alone"
    study.teachers = {}
    study.students = {}
    for percent in (25, 100) if smoke else PERCENT:
        group = f"{percent:03}%"
        study.teachers[f"{group}: CE"] = _with_labels(ce_teacher, argument, percent, "drop")
        study.teachers[f"{group}: MSE"] = _with_labels(mse_teacher, argument, percent, "drop")
        study.students[f"{group}: alone"] = _with_labels(alone_student, argument, percent, "drop")
        study.students[f"{group}: KD"] = _with_labels(kd_student, argument, percent, "keep")
        contrasts.append(((f"{group}: KD", f"{group}: MSE"), (f"{group}: KD", f"{group}: CE")))
        if percent < 100:  # with all labels, 'KD labelled' would be 'KD'
            study.students[f"{group}: KD labelled"] = _with_labels(kd_student, argument, percent, "drop")
            contrasts += [
                ((f"{group}: KD", f"{group}: {teacher}"), (f"{group}: KD labelled", f"{group}: {teacher}"))
                for teacher in ("CE", "MSE")
            ]
    study.contrasts = tuple(contrasts)
    return study


def _with_labels(module, argument: str | None, percent: int, unlabelled: str) -> ConfigDict:
    """Returns a config whose unlabelled images are dropped or kept, see the protocol labelled_fraction."""
    config = module.get_config(argument)
    if percent < 100:
        config.data.protocols = {"labelled_fraction": {"fraction": percent / 100, "unlabelled": unlabelled}}
    return config
