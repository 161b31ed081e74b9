"""What the configs share: the grammar of their arguments, and the recipes for data, networks and optimisation.

An argument is words separated by commas, in any order: a data set, a teacher's and a student's network (in this order),
and the config's own words, such as the method of configs/student.py. A pair of networks without a data set means
CIFAR-100; `smoke` is a run of seconds for tests.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from kdjax.config import TEACHER, defaults
from kdjax.errors import UserError, nearest

NETWORKS = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("resnet50_cifar", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("mobilenetv2_half", "shufflenetv1", "shufflenetv2", "densenet100", "densenet100_bc"),
)
IMAGENET_NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv1"),
    *("deit_tiny", "deit3_small", "vit_b32"),
)
WITH_AUXILIARY = ("resnet20", "resnet56", "resnet8x4", "resnet32x4")  # networks whose auxiliary classifiers are HSAKD's
LOW_RATE = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")  # trained with learning rate 0.01 instead of 0.05


def _digits(config: ConfigDict) -> None:
    """1,797 real images of 8x8: about 1,200 for training, 240 for validation and 360 for the test."""
    config.data.validation = 1 / 6
    config.epochs = 40
    config.batch_size = 64
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.checkpoint.every_epochs = 0  # a run takes seconds, so a checkpoint at the end is enough


def _smoke(config: ConfigDict) -> None:
    """A mixture of six Gaussians: runs all of the code in seconds and shows nothing about the method."""
    config.data.args = {"classes": 6, "dim": 8, "n_train": 320, "n_test": 64}
    config.data.validation = 0.2
    config.epochs = 2
    config.schedule.name = "constant"
    config.optimizer.learning_rate = 0.01


def _cifar(config: ConfigDict) -> None:
    """The recipe of RepDistiller, which the papers' tables follow: all training images, last epoch reported."""
    config.data.validation = 0.0  # select hyper-parameters with --config.data.validation=0.1
    config.epochs = 240
    config.batch_size = 64
    config.optimizer.learning_rate = 0.01 if config.model.name in LOW_RATE else 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.milestones = (150, 180, 210)


def _imagenet(config: ConfigDict) -> None:
    """The recipe of mdistiller at batch 256. Its KD and DKD use twice the batch and twice the learning rate."""
    config.data.validation = 0.0
    config.data.view = "rrc_flip"
    config.data.size = 224
    config.data.interpolation = "bilinear"
    config.epochs = 100
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.milestones = (30, 60, 90)


class Recipe(NamedTuple):
    """The networks of a data set.

    Attributes:
      data: Value of config.data.name.
      networks: Names of the networks that an argument may choose.
      pair: Teacher and student if the argument names none.
      hidden: Widths of the hidden layers of the teacher and of the student, if they are MLPs.
    """

    data: str
    networks: tuple[str, ...]
    pair: tuple[str, str]
    hidden: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


RECIPES = {
    "digits": Recipe("digits", (*NETWORKS, "mlp"), ("mlp", "mlp"), hidden=((512, 512), (12,))),
    "smoke": Recipe("gaussian", (), ("mlp", "mlp"), hidden=((32,), (8,))),
    "cifar10": Recipe("cifar10", NETWORKS, ("resnet32x4", "resnet8x4")),
    "cifar100": Recipe("cifar100", NETWORKS, ("resnet32x4", "resnet8x4")),
    "imagenet": Recipe("imagenet", IMAGENET_NETWORKS, ("resnet34", "resnet18")),
}
SETTERS = {"digits": _digits, "smoke": _smoke, "cifar10": _cifar, "cifar100": _cifar, "imagenet": _imagenet}
DATASETS = tuple(RECIPES)


class Grammar(NamedTuple):
    """The words that a config's argument may have.

    Attributes:
      form: Form of the argument, for messages.
      datasets: Data sets, of which an argument names at most one.
      networks: Number of networks that an argument names, unless it names none.
      options: Kind of word -> the words of that kind, of which an argument names at most one.
      default: Data set of an argument that names neither a data set nor networks.
    """

    form: str
    datasets: tuple[str, ...] = DATASETS
    networks: int = 0
    options: dict[str, tuple[str, ...]] = {}
    default: str = "digits"


class Words(NamedTuple):
    """What an argument chose.

    Attributes:
      dataset: The data set.
      networks: The networks in the order of the argument; () if it names none.
      options: Kind of word -> the chosen word, for the kinds that the argument names.
    """

    dataset: str
    networks: tuple[str, ...]
    options: dict[str, str]


class Setting(NamedTuple):
    """A data set and a pair of networks."""

    dataset: str
    teacher: str
    student: str


PAIR = Grammar("[DATASET][,TEACHER,STUDENT]", networks=2)
WHOLE_OR_SMOKE = Grammar("'smoke', or nothing for the whole study", datasets=("smoke",), default="")


def read(argument: str | None, grammar: Grammar) -> Words:
    """Reads the argument of a config.

    Args:
      argument: Text after the file's name and ':', None if there is none.
      grammar: The words that the config knows.

    Raises:
      UserError: The argument has a word that the config does not know, two words of a kind, or too few or too many
        networks. The message has the form of the argument and the nearest word.
    """
    given = [word for word in (argument or "").split(",") if word]
    kinds = {"data set": grammar.datasets, **grammar.options}
    networks = [word for word in given if not any(word in words for words in kinds.values())]
    chosen = {}
    for kind, words in kinds.items():
        found = [word for word in given if word in words]
        if len(found) > 1:
            raise refusal(argument, grammar, f"'{found[0]}' and '{found[1]}' are two words for the {kind}.")
        if found:
            chosen[kind] = found[0]
    dataset = chosen.pop("data set", "cifar100" if set(networks) & set(NETWORKS) else grammar.default)
    known = RECIPES[dataset].networks if grammar.networks else ()
    for word in networks:
        if word not in known and grammar.networks and any(word in recipe.networks for recipe in RECIPES.values()):
            raise refusal(argument, grammar, f"'{word}' is not a network of {dataset}.{nearest(word, known)}")
        if word not in known:
            hint = nearest(word, [*known, *(word for words in kinds.values() for word in words)])
            raise refusal(argument, grammar, f"unknown word '{word}'.{hint}")
    if len(networks) not in (0, grammar.networks):
        raise refusal(argument, grammar, f"name {grammar.networks} networks or none, not {len(networks)}.")
    return Words(dataset, tuple(networks), chosen)


def refusal(argument: str | None, grammar: Grammar, why: str) -> UserError:
    """Returns the error of an argument that a config does not understand."""
    return UserError(f"config argument '{argument}' should be {grammar.form}: {why}")


def parse(argument: str | None) -> Setting:
    """Reads an argument of the form [DATASET][,TEACHER,STUDENT]."""
    return setting_of(read(argument, PAIR))


def setting_of(words: Words) -> Setting:
    """Returns the data set and the pair of an argument, with the data set's own pair if the argument names none."""
    return Setting(words.dataset, *(words.networks or RECIPES[words.dataset].pair))


def is_smoke(argument: str | None) -> bool:
    """Reads the argument of a study that has only its whole form and a smoke form."""
    return read(argument, WHOLE_OR_SMOKE).dataset == "smoke"


def teacher(argument: str | None) -> ConfigDict:
    """Returns the data, network and optimisation of a teacher. The config sets the name and the losses."""
    setting = parse(argument)
    return _configured(setting, setting.teacher, RECIPES[setting.dataset].hidden[0])


def student(argument: str | None) -> ConfigDict:
    """Returns the data, network and optimisation of a student. The config sets the name, teachers and losses."""
    setting = parse(argument)
    return _configured(setting, setting.student, RECIPES[setting.dataset].hidden[1])


def _configured(setting: Setting, network: str, hidden: tuple[int, ...]) -> ConfigDict:
    recipe = RECIPES[setting.dataset]
    config = defaults()
    config.data.name = recipe.data
    config.model.name = network
    if network == "mlp":
        config.model.args = {"hidden": hidden}
    SETTERS[setting.dataset](config)
    return config


def name(short: str, argument: str | None) -> str:
    """Returns a config's short name, which says of a smoke run that it is one."""
    return f"{short}-smoke" if parse(argument).dataset == "smoke" else short


def teacher_run(argument: str | None, kind: str) -> dict:
    """Returns an entry of `config.teachers` for the run that a teacher's config makes with the same argument.

    Args:
      argument: Argument of the student's config.
      kind: 'ce' for configs/ce_teacher.py, 'mse' for configs/mse_teacher.py.
    """
    setting = parse(argument)
    dataset, smoke = ("gaussian", "-smoke") if setting.dataset == "smoke" else (setting.dataset, "")
    run = f"{dataset}/{setting.teacher}-{kind}{smoke}-s0"
    suffix = f":{argument}" if argument else ""
    made_by = f"python -m kdjax.train_teacher --config=configs/{kind}_teacher.py{suffix} --run={run}"
    return {**TEACHER, "run": run, "made_by": made_by}


def use_digits_weights(config: ConfigDict, argument: str | None, loss: str, weight: float) -> None:
    """Sets the weights of TTM or WTTM on digits.

    The papers' weights of up to 100 need BatchNorm, which the MLP does not have. On digits the labels have weight 0.1,
    as in KD. TTM has 3.6 = 0.9 T, which makes it KD at T = 4 and lambda = 0.9 except for the Rényi term.

    Args:
      config: Config of the student.
      argument: Its argument.
      loss: 'ttm' or 'wttm'.
      weight: Weight of that loss.
    """
    if parse(argument).dataset in ("digits", "smoke"):
        config.losses.cross_entropy.weight = 0.1
        config.losses[loss].weight = weight


def use_auxiliary_classifiers(model: ConfigDict, network: str) -> None:
    """Makes `config.model` a network with HSAKD's auxiliary classifiers."""
    if network in WITH_AUXILIARY:
        model.name = auxiliary_name(network)
    elif network == "mlp":
        raise UserError(
            "HSAKD puts auxiliary classifiers on the stages of convolutional networks, and mlp has none; name two: "
            "'hsakd_teacher.py:cifar100,TEACHER,STUDENT', 'student.py:hsakd,TEACHER,STUDENT'."
        )
    else:
        model.args = {"body": network, "body_args": model.args.to_dict()}
        model.name = "aux"


def use_views(model: ConfigDict) -> None:
    """Makes `config.model` its network with SSKD's second head, which embeds rotated images."""
    model.args = {"body": model.name, "body_args": model.args.to_dict()}
    model.name = "sskd"


def auxiliary_name(network: str) -> str:
    """Returns the name of a network with auxiliary classifiers in the names of runs."""
    return f"{network}_aux"
