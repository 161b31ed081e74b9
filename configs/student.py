"""A student by any method of the papers' tables, from a cross-entropy teacher, with the weights of those tables.

Paper:    the method's own, named in its function in kdjax/losses; weights of RepDistiller, mdistiller, Zheng & Yang.
Command:  python -m kdjax.train_student --config=configs/student.py:wttm_crd,resnet32x4,resnet8x4
          after python -m kdjax.train_teacher --config=configs/ce_teacher.py:cifar100,resnet32x4,resnet8x4
Expect:   the paper's accuracy stands in config.published, with the protocol that it was measured by.
Hardware: a GPU or TPU for CIFAR-100; `:dkd,resnet8,resnet8,digits` is a convolutional pair for a laptop.
"""

from ml_collections import ConfigDict

from configs import common, published
from kdjax.errors import UserError, nearest

CRD = {"weight": 0.8, "negatives": 16384, "dim": 128, "momentum": 0.5, "temperature": 0.07, "dtype": "float32"}

# method -> the terms beside cross-entropy of weight 1; a pair's own weights are put in by `_terms`.
METHODS = {
    "alone": {},
    "kd": {"kd": {"weight": 0.9, "temperature": 4.0}},  # beside cross-entropy of weight 0.1
    "ttm": {"ttm": {"weight": 1.0, "gamma": 0.1}},
    "wttm": {"wttm": {"weight": 1.0, "gamma": 0.1, "normalize": "none"}},
    "dkd": {"dkd": {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0}},
    "dist": {"dist": {"weight": 1.0, "inter_weight": 1.0, "intra_weight": 1.0, "temperature": 4.0}},
    "nkd": {"nkd": {"weight": 1.0, "gamma": 1.5, "temperature": 1.0}},
    "hint": {"hint": {"weight": 100.0}},
    "attention": {"attention": {"weight": 1000.0}},
    "nst": {"nst": {"weight": 50.0}},
    "fsp": {"fsp": {"weight": 0.0}},
    "factor_transfer": {"factor_transfer": {"weight": 200.0}},
    "activation_boundary": {"activation_boundary": {"weight": 0.0}},
    "vid": {"vid": {"weight": 1.0}},
    "svd": {"svd": {"weight": 1.0}},
    "review": {"review": {"weight": 5.0, "ramp_epochs": 20}},
    "ofd": {"ofd": {"weight": 0.001}},
    "similarity": {"similarity": {"weight": 3000.0}},
    "correlation": {"correlation": {"weight": 0.02, "dim": 128}},
    "rkd": {"rkd": {"weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0}},
    "pkt": {"pkt": {"weight": 30000.0}},
    "itrd": {"itrd": {"weight": 1.0, "alpha": 1.01}},
    "crd": {"crd": CRD},
    "hsakd": {"hsakd": {"weight": 1.0, "temperature": 3.0}},
    "wttm_crd": {"wttm": {"weight": 1.0, "gamma": 0.1}, "crd": CRD},
    "wttm_itrd": {"wttm": {"weight": 1.0, "gamma": 0.1}, "itrd": {"weight": 1.0, "alpha": 1.01}},
}
# method -> the phase that it begins with: (weight of its loss there, what is trained, learning rate, 0 for the usual).
WARMUPS = {
    "fsp": (1.0, "body", 0.0),
    "activation_boundary": (1.0, "body", 0.0),
    "factor_transfer": (1.0, "distiller", 0.01),
}
# method -> the table of (gamma, beta) for its WTTM or TTM term
TRANSFORMS = {
    "ttm": published.TTM,
    "wttm": published.WTTM,
    "wttm_crd": published.WTTM_CRD,
    "wttm_itrd": published.WTTM_ITRD,
}


def get_config(argument: str | None = None):
    """Argument: METHOD[,TEACHER,STUDENT[,DATASET]]; cifar100 where a pair is named, digits where none is."""
    method, *rest = (argument or "kd").split(",")
    if method not in METHODS:
        raise UserError(f"config argument '{argument}' begins with no method.{nearest(method, METHODS)}")
    teacher, student, dataset = {0: (None, None, "digits"), 2: (*rest, "cifar100"), 3: rest}.get(len(rest), [None] * 3)
    if dataset is None:
        raise UserError(f"config argument '{argument}' should be METHOD[,TEACHER,STUDENT[,DATASET]].")
    return make(method, f"{dataset},{teacher},{student}" if teacher else dataset)


def make(method: str, argument: str | None) -> ConfigDict:
    """Returns a method's config; the argument is that of `common.parse`."""
    config = common.student(argument)
    config.name = common.name(method, argument)
    if method != "alone":
        config.teachers = {"a": common.teacher_run(argument, "ce")}
    if method == "hsakd":
        _add_auxiliary_classifiers(config, argument)
    config.losses = _terms(method, common.parse(argument))
    if method in WARMUPS:
        _add_warmup(config, method)
    config.published = published.entry(method, *common.parse(argument))
    return config


def _terms(method: str, setting: common.Setting) -> dict:
    terms = {name: dict(term) for name, term in METHODS[method].items()}
    imagenet, pair = setting.dataset == "imagenet", (setting.teacher, setting.student)
    if method in TRANSFORMS:
        rows, pairs = (published.IMAGENET_WTTM, published.IMAGENET_PAIRS) if imagenet else (
            TRANSFORMS[method], published.PAIRS)  # fmt: skip
        # Where no table has the pair: KD's weights at T = 4, of which TTM is all but the Rényi term.
        gamma, beta = published.of_pair(rows, *pair, pairs) or (0.25, 3.6)
        name = "ttm" if method == "ttm" else "wttm"
        terms[name] |= {"weight": beta, "gamma": gamma}
    if method == "dkd":
        rows, pairs = (published.IMAGENET_DKD_BETA, published.IMAGENET_PAIRS) if imagenet else (
            published.DKD_BETA, published.PAIRS)  # fmt: skip
        epochs = 1 if imagenet else 20
        terms["dkd"] |= {"beta": published.of_pair(rows, *pair, pairs) or 8.0, "temperature": 1.0 if imagenet else 4.0}
        terms["dkd"]["ramp_epochs"] = epochs
    if method == "review":
        rows, pairs = (published.IMAGENET_REVIEW, published.IMAGENET_PAIRS) if imagenet else (
            published.REVIEW, published.PAIRS)  # fmt: skip
        value = published.of_pair(rows, *pair, pairs) or 5.0
        terms["review"] = {"weight": value, "ramp_epochs": 1 if imagenet else 20}
    if "itrd" in terms:
        same_family = pair in published.PAIRS[:7] or setting.teacher == setting.student
        mutual = 0.0 if pair in published.WITHOUT_MUTUAL else 1.0
        terms["itrd"] |= {"alpha": 1.01 if same_family else 1.5, "correlation_weight": 2.0, "mutual_weight": mutual}
    if method == "kd" and imagenet:
        terms["kd"] = {"weight": 0.5, "temperature": 1.0}
    labels = {"kd": 0.5 if imagenet else 0.1}.get(method, 1.0)
    return {"cross_entropy": {"weight": labels, "label_smoothing": 0.0}, **terms}


def _add_auxiliary_classifiers(config: ConfigDict, argument: str | None) -> None:
    """Makes student and teacher networks that also tell rotations, the teacher that of configs/hsakd_teacher.py."""
    setting = common.parse(argument)
    config.model.name = common.with_branches(setting.student)
    teacher = common.with_branches(setting.teacher)
    run = f"{setting.dataset}/{teacher}-hsakd-s0"
    made_by = f"python -m kdjax.train_teacher --config=configs/hsakd_teacher.py:{argument} --run={run}"
    config.teachers = {"a": {**common.teacher_run(argument, "ce"), "run": run, "made_by": made_by}}
    config.optimizer.nesterov = True


def _add_warmup(config: ConfigDict, method: str) -> None:
    weight, trains, rate = WARMUPS[method]
    config.warmup.epochs = min(30, config.epochs)
    config.warmup.losses = {method: weight}
    config.warmup.trains = trains
    config.warmup.learning_rate = 0.0 if config.model.name.startswith("vgg") else rate
