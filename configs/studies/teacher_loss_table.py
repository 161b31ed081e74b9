"""Does an MSE teacher make better students with every distillation loss? CE and MSE teachers under every method.

Paper:    Hamidi, Deng, Tan, Ye & Salamah, How to Train the Teacher Model for Effective Knowledge Distillation, ECCV
          2024, Table 1, without HSAKD, which needs teachers of its own (configs/hsakd_teacher.py).
Command:  ./launch/study.sh teacher_loss_table:resnet32x4,resnet8x4
          or python -m kdjax.run_study --config=configs/studies/teacher_loss_table.py:resnet32x4,resnet8x4
Expect:   the paper reports gains of the MSE teacher up to 2.67 points, more for pairs of different architectures.
Hardware: CIFAR-100 needs a GPU or TPU; `:resnet8,resnet8,digits` is a small convolutional pair for a laptop, and
          `:smoke` a minute of it.
"""

from ml_collections import ConfigDict

from configs import ce_teacher, common, mse_teacher, student

METHODS = tuple(method for method in student.METHODS if method not in ("alone", "hsakd"))
GRAMMAR = common.Grammar("TEACHER,STUDENT[,DATASET], or 'smoke'", networks=2, default="cifar100")


def get_config(argument: str | None = None):
    """Argument: TEACHER,STUDENT[,DATASET] or smoke."""
    words = common.read(argument, GRAMMAR)
    smoke = words.dataset == "smoke"
    dataset = "digits" if smoke else words.dataset
    # The MLPs that digits have by default have no maps.
    default = ("resnet8", "resnet8") if dataset == "digits" else common.RECIPES[dataset].pair
    teacher, trained = words.networks or default
    pair = f"{dataset},{teacher},{trained}"
    methods = ("kd", "similarity") if smoke else METHODS
    arguments = {method: f"{method},{teacher},{trained},{dataset}" for method in ("alone", *methods)}
    study = ConfigDict()
    study.title = "CE and MSE teachers under every method"
    study.seeds = 1 if smoke else 3
    study.splits = (0,)
    study.baseline = "alone"
    study.teachers = {"CE": ce_teacher.get_config(pair), "MSE": mse_teacher.get_config(pair)}
    study.students = {method: student.get_config(argument) for method, argument in arguments.items()}
    study.contrasts = (
        (("", "MSE"), ("", "CE")),
        *(((method, "MSE"), (method, "CE")) for method in methods),
    )
    if smoke:
        for config in (*study.teachers.values(), *study.students.values()):
            config.epochs = 1
            config.model.args = {"widths": (4, 4, 6, 8)}
    return study
