"""A teacher by any method of the table of teachers: the mirror of configs/student.py.

Paper:    that of the method, see configs/README.md.
Command:  python -m kdjax.train_teacher --config=configs/teacher.py:gce
          then python -m kdjax.train_student --config=configs/student.py:kd --config.teachers.a.run=digits/mlp-gce-s0
Expect:   nothing printed; configs/studies/which_teacher.py compares teachers at equal numbers of training examples.
Hardware: 2 CPU cores, a few seconds on digits. `:METHOD,cifar100` needs a GPU or TPU.
"""

from ml_collections import ConfigDict

from configs import ce_teacher, common, mse_teacher, tolerant_teacher

CROSS_ENTROPY = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}
LOSSES = {
    "smoothed": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
    "penalised": {**CROSS_ENTROPY, "confidence_penalty": {"weight": 0.1}},
    "sftn": {**CROSS_ENTROPY, "student_branches": {"weight": 1.0}},
    "gce": {"gce": {"weight": 1.0, "q": 0.7}},
    "mcmi": {"mcmi": {"weight": 1.0, "cmi_weight": 0.15}},
    "soteacher": {**CROSS_ENTROPY, "lipschitz": {"weight": 1e-5}},
    "born_again": {"cross_entropy": {"weight": 0.1, "label_smoothing": 0.0}, "kd": {"weight": 0.9, "temperature": 4.0}},
}
FINE_TUNING = 12  # a fine-tuned teacher takes this part of the epochs: the 20 of 240 of Ye et al. 2024
FOLDS = 2  # teachers of half of the images each cost together what one teacher costs
MIXED_VIEWS = {
    "digits": "mixup:1",
    "smoke": "",  # its examples are vectors, which are not mixed
    "cifar10": "crop_flip+mixup:1",
    "cifar100": "crop_flip+mixup:1",
    "imagenet": "rrc_flip+mixup:1",
}


def get_config(argument: str | None = None):
    """Argument: METHOD[,TEACHER,STUDENT][,DATASET], and for cross_fitted the part that is left out, 1 or 2."""
    words = common.read(argument, GRAMMAR)
    method, part = words.options.get("method", "ce"), words.options.get("part", "1")
    if "part" in words.options and method != "cross_fitted":
        raise common.refusal(argument, GRAMMAR, f"only cross_fitted has a part that is left out, not {method}.")
    setting = ",".join((words.dataset, *words.networks))
    if method in FILES:
        return FILES[method](setting)
    config = common.teacher(setting)
    config.name = common.name(f"{method}_{part}" if method == "cross_fitted" else method, setting)
    config.losses = LOSSES.get(method, CROSS_ENTROPY)
    if method == "cross_fitted":
        config.data.protocols.fold = {"folds": FOLDS, "leave_out": int(part) - 1}
    elif method in CHANGES:
        CHANGES[method](config, setting)
    return config


def _fine_tune(config: ConfigDict, argument: str) -> None:
    """Starts from the cross-entropy teacher, with a cosine schedule."""
    config.init_from = common.teacher_run(argument, "ce")["run"]
    config.epochs = max(1, config.epochs // FINE_TUNING)
    config.schedule.name = "cosine"


def _mcmi(config: ConfigDict, argument: str) -> None:
    """Fine-tunes; an epoch that trains nothing gathers the centroids of the initial teacher, which are held fixed."""
    _fine_tune(config, argument)
    config.warmup.epochs, config.warmup.trains = 1, "distiller"
    config.warmup.losses = {"mcmi": 1.0}


def _soteacher(config: ConfigDict, argument: str) -> None:
    """The weight of the consistency rises linearly to its value in the last epoch."""
    del argument
    weight = {"schedule": "warmup", "value": 1.0, "epochs": config.epochs}
    config.losses = {**LOSSES["soteacher"], "consistency": {"weight": weight}}


def _stopped(config: ConfigDict, argument: str) -> None:
    """The best checkpoint, which students read with `checkpoint=best`, is that of the lowest validation NLL."""
    del argument
    config.select_by = "nll"
    config.data.validation = config.data.validation or 0.1  # the papers' recipes hold nothing out


def _averaged(config: ConfigDict, argument: str) -> None:
    """The mean of the weights over the second half of the epochs."""
    del argument
    config.average.name, config.average.start = "swa", config.epochs // 2


def _longer(config: ConfigDict, argument: str) -> None:
    """Twice the epochs, with milestones at the same fractions."""
    del argument
    config.epochs *= 2
    config.schedule.milestones = tuple(2 * epoch for epoch in config.schedule.milestones)


def _born_again(config: ConfigDict, argument: str) -> None:
    """A student of its own kind; it has a teacher, so that kdjax.train_student trains it."""
    config.teachers = {"a": common.teacher_run(argument, "ce")}


def _mixed(config: ConfigDict, argument: str) -> None:
    """Mixes images while the teacher is trained; its students see plain ones."""
    config.data.view = MIXED_VIEWS[common.parse(argument).dataset]


def _sftn(config: ConfigDict, argument: str) -> None:
    """Student-shaped branches after each stage but the last; students read the network without them."""
    setting = common.parse(argument)
    config.name = common.name(f"sftn_{setting.student}", argument)
    config.model.name, config.model.args = "sftn", {"body": setting.teacher, "student": setting.student}


# Methods that have a file of their own.
FILES = {
    "ce": ce_teacher.get_config,
    "mse": mse_teacher.get_config,
    "tolerant": tolerant_teacher.get_config,
}
# What a method changes in the recipe beside the losses.
CHANGES = {
    "mcmi": _mcmi,
    "finetuned": _fine_tune,
    "soteacher": _soteacher,
    "stopped": _stopped,
    "averaged": _averaged,
    "sftn": _sftn,
    "longer": _longer,
    "born_again": _born_again,
    "mixed": _mixed,
}
METHODS = tuple(dict.fromkeys((*FILES, *LOSSES, *CHANGES, "cross_fitted")))
GRAMMAR = common.Grammar(
    "METHOD[,TEACHER,STUDENT][,DATASET][,PART]",
    networks=2,
    options={"method": METHODS, "part": tuple(str(part + 1) for part in range(FOLDS))},
)
