"""What the experiments share: the embedded digits, the CIFAR recipe of the papers, and a tiny set for smoke runs.

A config's argument says which: `FILE` or `FILE:digits`, `FILE:smoke`, `FILE:cifar100` for the papers' default pair,
`FILE:cifar100,resnet56,resnet20` for another pair of teacher and student; `cifar10`, `imagenet` and `digits` likewise.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from kdjax.config import TEACHER, defaults
from kdjax.errors import UserError, nearest

# data set -> (teacher, student) where the argument names none
DEFAULT_PAIRS = {
    "digits": ("mlp", "mlp"),
    "smoke": ("mlp", "mlp"),
    "cifar10": ("resnet32x4", "resnet8x4"),
    "cifar100": ("resnet32x4", "resnet8x4"),
    "imagenet": ("resnet34", "resnet18"),
}
DATASETS = tuple(DEFAULT_PAIRS)
NETWORKS = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("resnet50_cifar", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("mobilenetv2_half", "shufflenetv1", "shufflenetv2", "densenet100", "densenet100_bc"),
)
IMAGENET_NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv1"),
    *("deit_tiny", "deit3_small", "vit_b32"),
)
WITH_BRANCHES = ("resnet20", "resnet56", "resnet8x4", "resnet32x4")  # that HSAKD's auxiliary classifiers are built for
SLOW_RATE = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")  # trained at 0.01 instead of 0.05


class Setting(NamedTuple):
    """What a config's argument chose."""

    dataset: str
    teacher: str
    student: str


def is_smoke(argument: str | None) -> bool:
    """Whether a config that knows no other argument is asked for its smoke form; refuses any other."""
    if argument not in (None, "", "smoke"):
        raise UserError(f"config argument '{argument}' is none; there is 'smoke', or no argument for the whole study.")
    return argument == "smoke"


def parse(argument: str | None) -> Setting:
    """Reads a config's argument; refuses one that it does not know."""
    dataset, *pair = (argument or "digits").split(",")
    if dataset not in DATASETS:
        raise UserError(
            f"config argument '{argument}' begins with none of {', '.join(DATASETS)}.{nearest(dataset, DATASETS)}"
        )
    if dataset == "smoke" and pair:
        raise UserError(f"config argument '{argument}': '{dataset}' takes no pair of networks.")
    default, networks = DEFAULT_PAIRS[dataset], IMAGENET_NETWORKS if dataset == "imagenet" else NETWORKS
    teacher, student = {0: default, 2: pair}.get(len(pair), (None, None))
    for name in (teacher, student):
        if name not in (*networks, *default):
            raise UserError(
                f"config argument '{argument}' should be '{dataset}' or '{dataset},TEACHER,STUDENT'."
                f"{nearest(name, networks)}"
            )
    return Setting(dataset, teacher, student)


def teacher(argument: str | None) -> ConfigDict:
    """Returns data, network and optimisation of a teacher; its name and losses are left to the config."""
    setting = parse(argument)
    config = _common(setting, setting.teacher)
    if setting.teacher == "mlp":
        config.model.args = {"hidden": (32,) if setting.dataset == "smoke" else (512, 512)}
    return config


def student(argument: str | None) -> ConfigDict:
    """Returns data, network and optimisation of a student; its name, teachers and losses are left to the config."""
    setting = parse(argument)
    config = _common(setting, setting.student)
    if setting.student == "mlp":
        config.model.args = {"hidden": (8,) if setting.dataset == "smoke" else (12,)}
    return config


def mse_teacher_run(argument: str | None) -> dict:
    """Returns the field of `config.teachers` for the run that configs/mse_teacher.py makes with the same argument."""
    return teacher_run(argument, "mse")


def teacher_run(argument: str | None, kind: str) -> dict:
    """Returns the field of `config.teachers` for the run of configs/KIND_teacher.py, 'ce' or 'mse', and its command."""
    setting = parse(argument)
    dataset, smoke = ("gaussian", "-smoke") if setting.dataset == "smoke" else (setting.dataset, "")
    run = f"{dataset}/{setting.teacher}-{kind}{smoke}-s0"
    suffix = f":{argument}" if argument else ""
    made_by = f"python -m kdjax.train_teacher --config=configs/{kind}_teacher.py{suffix} --run={run}"
    return {**TEACHER, "run": run, "made_by": made_by}


def weigh_digits(config: ConfigDict, argument: str | None, transformed: str, weight: float) -> None:
    """Gives TTM or WTTM on digits its own weight: the MLP lacks the BatchNorm that carries the papers' weights of 100.

    0.1 for the labels as in KD, and for TTM 3.6 = 0.9 T: with these TTM is KD at T = 4 and lambda = 0.9 but for the
    Rényi term.
    """
    if parse(argument).dataset in ("digits", "smoke"):
        config.losses.cross_entropy.weight, config.losses[transformed].weight = 0.1, weight


def name(short: str, argument: str | None) -> str:
    """Returns a config's short name; smoke runs must not pass for real ones."""
    return f"{short}-smoke" if parse(argument).dataset == "smoke" else short


def _common(setting: Setting, model: str) -> ConfigDict:
    config = defaults()
    config.model.name = model
    recipes = {"digits": _digits, "smoke": _smoke, "cifar10": _cifar, "cifar100": _cifar, "imagenet": _imagenet}
    recipes[setting.dataset](config, setting.dataset)
    return config


def _digits(config: ConfigDict, dataset: str) -> None:
    """1,797 real 8x8 digits: about 1,200 to train on, 240 to choose on, 360 to tell."""
    config.data.name = dataset
    config.data.validation = 1 / 6
    config.epochs = 40
    config.batch_size = 64
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.checkpoint.every_epochs = 0  # seconds long: the end is soon enough


def _smoke(config: ConfigDict, dataset: str) -> None:
    """A few seconds of a mixture of six Gaussians: the whole path, no science."""
    del dataset
    config.data.name = "gaussian"
    config.data.args = {"classes": 6, "dim": 8, "n_train": 320, "n_test": 64}
    config.data.validation = 0.2
    config.epochs = 2
    config.schedule.name = "constant"
    config.optimizer.learning_rate = 0.01


def _cifar(config: ConfigDict, dataset: str) -> None:
    """The recipe of RepDistiller, which the papers' tables follow: all training images, last epoch reported."""
    config.data.name = dataset
    config.data.validation = 0.0  # choose hyper-parameters with --config.data.validation=0.1
    config.epochs = 240
    config.batch_size = 64
    config.optimizer.learning_rate = 0.01 if config.model.name in SLOW_RATE else 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.milestones = (150, 180, 210)


def _imagenet(config: ConfigDict, dataset: str) -> None:
    """The recipe of mdistiller at batch 256 (its KD and DKD take twice batch and rate)."""
    config.data.name = dataset
    config.data.validation = 0.0
    config.data.view, config.data.size, config.data.interpolation = "rrc_flip", 224, "bilinear"
    config.epochs = 100
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.milestones = (30, 60, 90)


def with_branches(network: str) -> str:
    """Returns the name of a network with HSAKD's auxiliary classifiers; refuses one that they are not built for."""
    if network not in WITH_BRANCHES:
        raise UserError(
            f"HSAKD's auxiliary classifiers are built for {', '.join(WITH_BRANCHES)}, not for {network}; name two of "
            "them: 'hsakd_teacher.py:cifar100,TEACHER,STUDENT', 'student.py:hsakd,TEACHER,STUDENT'."
        )
    return f"{network}_aux"
