"""A student by any method of the papers' tables, from a cross-entropy teacher, with the weights of those tables.

Paper:    that of the method, see configs/README.md; weights of RepDistiller, mdistiller and Zheng & Yang 2024.
Command:  python -m kdjax.train_student --config=configs/student.py:wttm_crd,resnet32x4,resnet8x4
          after python -m kdjax.train_teacher --config=configs/ce_teacher.py:cifar100,resnet32x4,resnet8x4
Expect:   the paper's accuracy is in config.published, with its source and whether it is of the last epoch.
Hardware: a GPU or TPU for CIFAR-100; `:dkd,resnet8,resnet8,digits` is a convolutional pair for a laptop.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common, published

CRD = {"weight": 0.8, "negatives": 16384, "dim": 128, "momentum": 0.5, "temperature": 0.07, "dtype": "float32"}
ITRD = {"weight": 1.0, "correlation_weight": 2.0}


class Warmup(NamedTuple):
    """The phase that a method begins with.

    Attributes:
      weight: Weight of the method's loss in this phase.
      trains: Which parameters are trained, see `config.warmup.trains`.
      learning_rate: Constant learning rate; 0 for that of the training. VGG students always use the latter.
      epochs: Number of its epochs.
      loss: Name of the loss, '' for that of the method.
    """

    weight: float
    trains: str
    learning_rate: float = 0.0
    epochs: int = 30
    loss: str = ""


class Method(NamedTuple):
    """A row of the papers' tables.

    Attributes:
      terms: Loss -> weight and hyper-parameters, for the losses beside cross-entropy.
      by_pair: Loss -> the hyper-parameters that depend on the pair of networks.
      imagenet: Loss -> the hyper-parameters that are others on ImageNet.
      labels: Weight of cross-entropy.
      imagenet_labels: The same on ImageNet.
      warmup: The phase before the training, if there is one.
      optimizer: Fields of config.optimizer that differ from the recipe of the data set, on ImageNet apart.
      imagenet_optimizer: The same on ImageNet.
      auxiliary: Whether teacher and student have HSAKD's auxiliary classifiers.
      views: Whether teacher and student have SSKD's head for rotated images.
      falls: Loss -> share of the epochs after which its weight falls to 0 along half a cosine; at once on ImageNet.
      reuses_classifier: Whether the student ends in SimKD's projector and the teacher's classifier.
    """

    terms: dict[str, dict]
    by_pair: dict[str, published.ByPair | published.Known] = {}
    imagenet: dict[str, dict] = {}
    labels: float = 1.0
    imagenet_labels: float = 1.0
    warmup: Warmup | None = None
    optimizer: dict[str, float | bool | str] = {}
    imagenet_optimizer: dict[str, float | bool | str] = {}
    auxiliary: bool = False
    views: bool = False
    falls: dict[str, float] = {}
    reuses_classifier: bool = False


METHODS = {
    "alone": Method({}),
    "kd": Method(
        {"kd": {"weight": 0.9, "temperature": 4.0}},
        imagenet={"kd": {"weight": 0.5, "temperature": 1.0}},
        labels=0.1,
        imagenet_labels=0.5,
    ),
    "kd_dot": Method(
        {"kd_dot": {"loss": "kd", "weight": 0.9, "temperature": 4.0}},
        imagenet={"kd_dot": {"weight": 0.5, "temperature": 1.0}},
        labels=0.1,
        imagenet_labels=0.5,
        optimizer={"name": "dot", "delta": 0.075},
        imagenet_optimizer={"name": "dot", "delta": 0.09},
    ),
    "ttm": Method({"ttm": {}}, by_pair={"ttm": published.TTM}),
    "wttm": Method({"wttm": {"normalize": "none"}}, by_pair={"wttm": published.WTTM}),
    "dkd": Method(
        {"dkd": {"weight": 1.0, "alpha": 1.0, "temperature": 4.0, "ramp_epochs": 20}},
        by_pair={"dkd": published.DKD},
        imagenet={"dkd": {"temperature": 1.0, "ramp_epochs": 1}},
    ),
    "dist": Method({"dist": {"weight": 1.0, "inter_weight": 1.0, "intra_weight": 1.0, "temperature": 4.0}}),
    "nkd": Method({"nkd": {"weight": 1.0, "gamma": 1.5, "temperature": 1.0}}),
    "wsl": Method({"wsl": {"weight": 2.25, "temperature": 4.0}}, imagenet={"wsl": {"weight": 2.5, "temperature": 2.0}}),
    "normkd": Method(
        {"normkd": {"weight": 0.9, "scale": 2.0}},
        imagenet={"normkd": {"weight": 0.5, "scale": 1.0}},
        labels=0.1,
        imagenet_labels=0.5,
    ),
    "abkd": Method(
        {"abkd": {"loss": "alpha_beta", "weight": 32.0, "alpha": 0.8, "beta": 0.3, "temperature": 4.0}},
    ),
    "rld": Method(
        {"rld": {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "ramp_epochs": 20}},
        imagenet={"rld": {"beta": 0.5, "temperature": 1.0, "ramp_epochs": 1}},
    ),
    "tekap": Method({"tekap": {"weight": 0.9, "temperature": 4.0}}, labels=0.1, imagenet_labels=0.1),
    "gkl": Method(
        {"gkl": {"weight": 1.0, "alpha": 1.0, "beta": 16.0, "gamma": 0.05, "ramp_epochs": 20}},
        imagenet={
            "gkl": {"beta": 0.5, "gamma": 0.6, "temperature": 1.0, "teacher_temperature": 1.0, "ramp_epochs": 5},
        },
    ),
    "class_gkl": Method(
        {"class_gkl": {"weight": 1.0, "alpha": 1.0, "beta": 16.0, "gamma": 0.05, "ramp_epochs": 20}},
        imagenet={
            "class_gkl": {"beta": 0.5, "gamma": 0.6, "temperature": 1.0, "teacher_temperature": 1.0, "ramp_epochs": 5},
        },
    ),
    "wkdl": Method(
        {"wkdl": {"gamma": 1.0, "label_weight": 0.0}, "label_term": {"weight": 1.0}},
        by_pair={"wkdl": published.WKDL},
        warmup=Warmup(1.0, "distiller", epochs=1),
        falls={"wkdl": 0.625},
    ),
    "ctkd": Method({"ctkd": {"weight": 0.9, "low": 1.0, "span": 20.0, "epochs": 10}}, labels=0.1, imagenet_labels=0.1),
    "ofa": Method({"ofa": {"weight": 1.0, "exponent": 1.0, "stage_weight": 1.0}}),
    "hint": Method({"hint": {"weight": 100.0}}),
    "ickd": Method({"ickd": {"weight": 2.5}}),
    "srrl": Method({"srrl": {"weight": 1.0, "logit_weight": 1.0}}),
    "simkd": Method({"simkd": {"weight": 1.0}}, labels=0.0, imagenet_labels=0.0, reuses_classifier=True),
    "sdd": Method(
        {"sdd": {"weight": 0.9, "temperature": 4.0, "levels": 2}},
        imagenet={"sdd": {"weight": 0.5, "temperature": 1.0}},
        labels=0.1,
        imagenet_labels=0.5,
    ),
    "catkd": Method(
        {"catkd": {"size": 2}},
        by_pair={"catkd": published.CATKD},
        imagenet={"catkd": {"size": 4}},
    ),
    "kdpp": Method(
        {"kd": {"temperature": 4.0, "ramp_epochs": 20}, "nd": {"weight": 2.0}},
        by_pair={"kd": published.KDPP},
        imagenet={"kd": {"temperature": 1.0}},
        warmup=Warmup(1.0, "distiller", epochs=1, loss="nd"),
        optimizer={"learning_rate": 0.1, "nesterov": True},
    ),
    "vitkd": Method({"vitkd": {"weight": 1.0, "shallow_weight": 3e-5, "deep_weight": 3e-6, "masked": 0.5}}),
    "attention": Method({"attention": {"weight": 1000.0}}),
    "nst": Method({"nst": {"weight": 50.0}}),
    "fsp": Method({"fsp": {"weight": 0.0}}, warmup=Warmup(1.0, "body")),
    "factor_transfer": Method({"factor_transfer": {"weight": 200.0}}, warmup=Warmup(1.0, "distiller", 0.01)),
    "activation_boundary": Method({"activation_boundary": {"weight": 0.0}}, warmup=Warmup(1.0, "body")),
    "vid": Method({"vid": {"weight": 1.0}}),
    "svd": Method({"svd": {"weight": 1.0}}),
    "review": Method(
        {"review": {"ramp_epochs": 20}},
        by_pair={"review": published.REVIEW},
        imagenet={"review": {"ramp_epochs": 1}},
    ),
    "ofd": Method({"ofd": {"weight": 0.001}}),
    "similarity": Method({"similarity": {"weight": 3000.0}}),
    "correlation": Method({"correlation": {"weight": 0.02, "dim": 128}}),
    "rkd": Method({"rkd": {"weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0}}),
    "pkt": Method({"pkt": {"weight": 30000.0}}),
    "itrd": Method({"itrd": ITRD}, by_pair={"itrd": published.ITRD}),
    "crd": Method({"crd": CRD}),
    "sskd": Method(
        {"kd": {"weight": 0.9, "temperature": 4.0}, "sskd": {"weight": 1.0}},
        labels=0.1,
        imagenet_labels=0.1,
        views=True,
    ),
    "hsakd": Method({"hsakd": {"weight": 1.0, "temperature": 3.0}}, auxiliary=True),
    "wttm_crd": Method({"wttm": {}, "crd": CRD}, by_pair={"wttm": published.WTTM_CRD}),
    "wttm_itrd": Method({"wttm": {}, "itrd": ITRD}, by_pair={"wttm": published.WTTM_ITRD, "itrd": published.ITRD}),
}

GRAMMAR = common.Grammar(
    "METHOD[,TEACHER,STUDENT][,DATASET]",
    networks=2,
    options={"method": tuple(METHODS)},
)


def get_config(argument: str | None = None):
    """Argument: METHOD[,TEACHER,STUDENT][,DATASET]; CIFAR-100 if a pair is named, digits if not."""
    words = common.read(argument, GRAMMAR)
    return make(words.options.get("method", "kd"), ",".join((words.dataset, *words.networks)))


def make(method: str, argument: str | None) -> ConfigDict:
    """Returns the config of a method.

    Args:
      method: Key of METHODS.
      argument: Argument of the form [DATASET][,TEACHER,STUDENT].
    """
    row, setting = METHODS[method], common.parse(argument)
    config = common.student(argument)
    config.name = common.name(method, argument)
    if row.auxiliary:
        _use_auxiliary_classifiers(config, argument)
    elif row.terms:
        config.teachers = {"a": common.teacher_run(argument, "ce")}
    if row.reuses_classifier:
        _reuse_classifier(config)
    if row.views:
        _use_views(config, argument)
    config.losses = _losses(row, setting, config.epochs)
    config.optimizer.update(row.imagenet_optimizer if setting.dataset == "imagenet" else row.optimizer)
    if row.warmup:
        _set_warmup(config, method, row.warmup)
    published.state(config, method, *setting)
    return config


def _losses(row: Method, setting: common.Setting, epochs: int) -> dict:
    imagenet = setting.dataset == "imagenet"
    losses = {"cross_entropy": {"weight": row.imagenet_labels if imagenet else row.labels, "label_smoothing": 0.0}}
    for loss, term in row.terms.items():
        by_pair = row.by_pair[loss].of(*setting) if loss in row.by_pair else {}
        of_imagenet = row.imagenet.get(loss, {}) if imagenet else {}
        losses[loss] = {**term, **by_pair, **of_imagenet}
    for loss, share in row.falls.items():
        # The authors count epochs from 1, and the schedule from 0.
        first = (0 if imagenet else round(share * epochs)) - 1
        losses[loss]["fall_epochs"] = (first, max(epochs - 1, first + 1))
    return losses


def _use_auxiliary_classifiers(config: ConfigDict, argument: str | None) -> None:
    """Gives both networks classifiers that also predict rotations; the teacher is that of configs/hsakd_teacher.py."""
    setting = common.parse(argument)
    common.use_auxiliary_classifiers(config.model, setting.student)
    teacher = common.auxiliary_name(setting.teacher)
    run = f"{setting.dataset}/{teacher}-hsakd-s0"
    made_by = f"python -m kdjax.train_teacher --config=configs/hsakd_teacher.py:{argument} --run={run}"
    config.teachers = {"a": {**common.teacher_run(argument, "ce"), "run": run, "made_by": made_by}}
    config.optimizer.nesterov = True


def _use_views(config: ConfigDict, argument: str | None) -> None:
    """Gives the student SSKD's second head; the teacher is that of configs/sskd_teacher.py."""
    setting = common.parse(argument)
    common.use_views(config.model)
    dataset = "gaussian" if setting.dataset == "smoke" else setting.dataset
    run = f"{dataset}/{setting.teacher}_sskd-{common.name('sskd', argument)}-s0"
    made_by = f"python -m kdjax.train_teacher --config=configs/sskd_teacher.py:{argument} --run={run}"
    config.teachers = {"a": {**common.teacher_run(argument, "ce"), "run": run, "made_by": made_by}}


def _reuse_classifier(config: ConfigDict) -> None:
    """Makes the student the body of SimKD's network; width and size of its projector come from the teacher."""
    config.model.args = {"body": config.model.name, "body_args": config.model.args.to_dict(), "factor": 2}
    config.model.name = "simkd"


def _set_warmup(config: ConfigDict, method: str, warmup: Warmup) -> None:
    config.warmup.epochs = min(warmup.epochs, config.epochs)
    config.warmup.losses = {warmup.loss or method: warmup.weight}
    config.warmup.trains = warmup.trains
    config.warmup.learning_rate = 0.0 if config.model.name.startswith("vgg") else warmup.learning_rate
