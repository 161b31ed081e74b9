"""The schema of a run's config: every field with its default, the values it may take, and the checks. No jax here."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kdjax.errors import UserError, nearest

# The fields of one teacher: config.teachers = {'a': {'run': 'digits/mlp-mse-s0'}}. All are optional but the run, or the
# logits in its place.
TEACHER = {
    "run": "",  # name of the teacher's run in the store
    "logits": "",  # in place of a run, a file of outputs: .npy of logits, or .npz of top classes (configs/README.md)
    "weight": 1.0,  # share among several teachers
    "temperature": 1.0,  # divides the teacher's logits before any loss reads them; 'fitted': see FITTED
    "classes": (),  # columns of its logits that are the data's classes, in their order; () for config.teacher_classes
    "checkpoint": "last",  # 'last', 'best' or a step
    "output": "",  # how logits become probabilities, for a teacher that was fitted in logit space; see CHOICES
    "made_by": "",  # command that trains the teacher, shown when the store lacks the run
    "view": "",  # view of the images; '' for config.data.teacher_view, and where that is '' too, the student's view
    "more_labels": False,  # allows a teacher that was trained on labels which the student does not have
}

# A teacher's temperature that is fitted when the run is planned: it minimises the teacher's NLL on the labels of the
# run's validation images. The run's manifest has its value.
FITTED = "fitted"

# Sections whose floats are passed to the compiled step as arguments. A change of any other field recompiles the step.
TRACED = ("losses", "warmup", "optimizer", "schedule", "average", "teachers", "seed")

# Networks around another one, which config.model.args.body names; the name of a run has both.
WRAPPERS = ("simkd", "aux", "sskd", "sftn")

# Sections that may change under an existing run's name, since they do not change its numbers.
OPERATIONAL = ("checkpoint", "notes", "published", "log_every", "changed")

SEEDS = ("seed", "data.split_seed", "data.order_seed")
# Fields that change no number, or change it only by rounding. These are full paths, because 'checkpoint' of a teacher
# and 'seed' of a data set do change numbers.
WITHOUT_EFFECT = (
    *(*OPERATIONAL, "eval_batch_size", "eval_every", "diagnostics"),
    *("data.stream", "data.workers", "data.report_unshared", "score_train"),
)

# Field -> the values it may take. 'teachers.NAME' stands for every teacher.
CHOICES: dict[str, tuple[str, ...]] = {
    "trainable": (
        "all",
        "head",  # the body keeps its weights, and its BatchNorm uses the running statistics
    ),
    "select": (
        "validation",  # 'best' is the best epoch on the validation split, as config.select_by measures it
        "last",  # no best checkpoint is kept
    ),
    "select_by": (
        "accuracy",  # the highest
        "nll",  # the lowest negative log-likelihood of the labels
        "brier",  # the lowest squared distance to the one-hot labels, summed over classes
    ),
    "ensemble": (
        "losses",  # the mean, over teachers, of each loss
        "logits",  # losses of logits alone see one teacher: the mean of the logits
        "probs",  # the same with the mean of the probabilities
        "choice",  # one teacher for each example, drawn by weight
        "held_out",  # as 'probs', of those teachers alone that were not trained on the example
    ),
    "teacher_batch_norm": (
        "running",
        "batch",  # statistics of the global batch, as in code that never calls eval() on its teachers
    ),
    "teacher_dtype": (
        "student",  # config.model.dtype; a network of your own that takes no dtype keeps its own type
        "trained",  # the type that each teacher was trained in
        "float32",
        "bfloat16",
    ),
    "teachers.NAME.output": (
        "",  # a softmax, but refused if the teacher was fitted in logit space
        "softmax",
        "clipped_logits",  # the logits, clipped at 0 and normalised, are the probabilities
    ),
    "data.interpolation": ("bicubic", "bilinear"),
    "data.stream": (
        "auto",  # stream a data set that does not fit in memory
        "always",
        "never",
    ),
    "data.targets": (
        "labels",
        "soft",  # the distributions that come with the data set
    ),
    "model.dtype": ("float32", "bfloat16"),
    "model.batch_norm": (
        "global",  # statistics of the global batch
        "per_device",
    ),
    "model.running_variance": (
        "biased",  # as flax
        "unbiased",  # as PyTorch
    ),
    "model.init": (
        "paper",  # the initial weights of each network's reference code
        "torch",
        "flax",
    ),
    "warmup.trains": (
        "all",
        "body",  # the student without its head
        "distiller",  # only the losses' own trainable parts
    ),
    "average.name": (
        "",
        "ema",  # an exponential moving average over updates
        "swa",  # the mean over the ends of epochs
    ),
    "optimizer.name": (
        "sgd",
        "adamw",
        "dot",  # SGD with a momentum for losses that read a teacher and another for the rest (Zhao et al. 2023)
    ),
    "optimizer.decay": (
        "all",
        "kernels",  # no weight decay on biases and on the scales of normalisation layers
    ),
}


class Range(NamedTuple):
    """The numbers that a field may take.

    Attributes:
      words: Description for messages, such as 'at least 1'.
      holds: Returns whether a number is allowed.
    """

    words: str
    holds: Callable[[float], bool]


AT_LEAST_0 = Range("at least 0", lambda value: value >= 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
ABOVE_0 = Range("above 0", lambda value: value > 0)
FRACTION = Range("in [0, 1)", lambda value: 0 <= value < 1)
SEED = Range("in [0, 2^32)", lambda value: 0 <= value < 2**32)

# Field -> its range. Ranges are checked here, since numbers are traced inside a step and cannot be compared there.
RANGES = {
    "seed": SEED,
    "epochs": AT_LEAST_1,
    "batch_size": AT_LEAST_1,
    "eval_batch_size": AT_LEAST_1,
    "eval_every": AT_LEAST_1,
    "log_every": AT_LEAST_0,
    "data.order_seed": Range("-1 or in [0, 2^32)", lambda value: -1 <= value < 2**32),
    "data.split_seed": SEED,
    "data.validation": FRACTION,
    "data.size": AT_LEAST_0,
    "data.workers": Range("at least -1", lambda value: value >= -1),
    "warmup.epochs": AT_LEAST_0,
    "warmup.learning_rate": AT_LEAST_0,
    "optimizer.learning_rate": ABOVE_0,
    "optimizer.momentum": FRACTION,
    "optimizer.delta": FRACTION,
    "optimizer.b1": FRACTION,
    "optimizer.b2": FRACTION,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.body_factor": AT_LEAST_0,
    "average.decay": FRACTION,
    "average.start": AT_LEAST_0,
    "schedule.factor": ABOVE_0,
    "schedule.warmup_epochs": AT_LEAST_0,
    "checkpoint.every_epochs": AT_LEAST_0,
}

# Field that is a tuple -> what its items are.
ITEMS = {
    "schedule.milestones": Range("numbers of at least 0", lambda value: _is_number(value) and 0 <= value < math.inf),
    "teacher_classes": Range("integers of at least 0", lambda value: type(value) is int and value >= 0),
    "notes": Range("texts", lambda value: isinstance(value, str)),
}

# Sections whose fields are not the schema's: arguments of a function, or names that the user gives.
FREE = (
    "config.data.args",
    "config.data.protocols",
    "config.model.args",
    "config.schedule.args",
    "config.teachers",
    "config.losses",
    "config.warmup.losses",
    "config.published",
)


def defaults() -> ConfigDict:
    """Returns a new config that has every field, at its default value. Allowed values are in `CHOICES` and `RANGES`."""
    config = ConfigDict()
    config.name = ""  # short name of the config, a part of the run's default name; a student has that of its losses
    # instead, unless the command line sets the name
    config.changed = ()  # fields that were changed from the config file, a part of the run's default name; set by kdjax
    config.seed = 0  # of the initial weights, the order of the examples and the augmentation; never of the split
    config.epochs = 40
    config.batch_size = 64  # over all devices
    config.eval_batch_size = 512  # over all devices
    config.eval_every = 1  # epochs between evaluations
    config.log_every = 0  # steps between two whose losses are written to the run's steps.jsonl; 0 for none
    config.init_from = ""  # run whose weights this run starts from; a head of another shape is initialised anew
    config.init_checkpoint = "last"  # checkpoint of that run: 'last', 'best' or a step
    config.trainable = "all"  # which parameters are trained
    config.select = "validation"  # how the best checkpoint is selected
    config.select_by = "accuracy"  # measure on the validation split by which it is selected
    config.score_train = False  # whether the result also has scores on the training images
    config.diagnostics = False  # also log entropies, KL to the transformed teacher and the mean WTTM weight
    config.data = _data()
    config.model = _model()
    config.teachers = ConfigDict()  # name -> the fields of TEACHER
    config.ensemble = "losses"  # how several teachers are combined
    config.teacher_classes = ()  # columns of the teachers' logits that are the data's classes; () if they are the same
    config.teacher_batch_norm = "running"  # statistics that BatchNorm uses in teachers
    config.teacher_dtype = "student"  # type of the teachers' computation
    config.losses = ConfigDict()  # name -> {'weight': ..., hyper-parameters}; 'loss': 'kd' to use one loss twice
    config.warmup = _warmup()
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.average = _average()
    config.notes = ()  # messages that are shown when the run starts
    config.published = ConfigDict()  # what a paper reports for this run, all optional:
    # accuracy, teacher, alone (% on the test split): of this run, of its teacher, of the student without a teacher
    # source (paper and table), selection ('last epoch' or 'best epoch'; '' if the source does not say),
    # view (of the training images), epochs, runs (number of runs averaged; 0 for each if the source does not say),
    # teacher_losses: names of the losses that the paper's teachers were trained with, see `printed`
    # recipe: what the number was measured with, see `recipe`
    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 10  # epochs between checkpoints, and one at the end; 0 for the end only
    return config


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = "digits"  # a key of DATASETS, 'folder:PATH', 'list:FILE', 'tfds:NAME' or 'package.module:attribute'
    data.args = ConfigDict()  # arguments of the data set's loader
    data.order_seed = -1  # decides order, views, mixing and the choice among teachers; -1: config.seed
    data.split_seed = 0  # decides which images are held out; a teacher and its students share it
    data.validation = 0.1  # fraction of the training images that is held out for validation
    data.view = ""  # augmentation, such as 'crop_flip+cutout:16' (kdjax/data/views/names.py); '' for the data set's own
    data.teacher_view = ""  # view of the teachers where it is another; crops and flips stay shared with the student
    data.size = 0  # side in pixels to which images are resized; 0 keeps the stored size
    data.interpolation = "bicubic"  # of the resizing
    data.protocols = ConfigDict()  # name -> arguments, see kdjax.data.protocols
    data.stream = "auto"  # whether images are read from disk during training
    data.workers = -1  # processes that decode a stream; -1 for half of the cores, 0 for threads
    data.skip_bad = False  # a stream skips and counts images that cannot be read, instead of ending the run
    data.exif = False  # turns encoded images as their EXIF data says; if not, a warning says that some have such data
    data.allow_overlap = False  # accepts a data set of your own that has the same images in two splits
    data.report_unshared = False  # also reports the test accuracy without images that train or validation share
    data.targets = "labels"  # targets of the losses on labels
    return data


def _model() -> ConfigDict:
    model = ConfigDict()
    model.name = "mlp"  # a key of MODELS or 'package.module:attribute'
    model.args = ConfigDict()  # arguments of its constructor besides num_classes
    model.dtype = "float32"  # type of the computation; parameters, statistics and losses stay float32
    model.batch_norm = "global"  # batch over which BatchNorm takes its statistics
    model.running_variance = "biased"  # variance that BatchNorm averages for evaluation
    model.init = "paper"  # rule for the initial weights
    model.features = ()  # paths of the feature maps that losses read: ('block1', 'block3'); () for the network's own
    model.pooled = ""  # path of the pooled vector; '' for the network's own, else the mean of the last feature map
    model.head = "fc"  # name of the classifier among the parameters
    return model


def _warmup() -> ConfigDict:
    """Returns the fields of the phase before the first epoch, for methods that begin with one."""
    warmup = ConfigDict()
    warmup.epochs = 0
    warmup.losses = ConfigDict()  # name -> weight, for those of config.losses that are used in this phase
    warmup.trains = "all"  # which parameters are trained
    warmup.learning_rate = 0.0  # constant; 0 for config.optimizer.learning_rate
    return warmup


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.name = "sgd"
    optimizer.learning_rate = 0.05
    optimizer.momentum = 0.9  # sgd and dot
    optimizer.delta = 0.075  # dot only: momentum + delta for losses that read a teacher, momentum - delta for others
    optimizer.nesterov = False  # sgd only
    optimizer.b1 = 0.9  # adamw only
    optimizer.b2 = 0.999  # adamw only
    optimizer.weight_decay = 5e-4
    optimizer.body_factor = 1.0  # multiplies the learning rate of all parameters but the head's
    optimizer.decay = "all"  # parameters that weight decay applies to
    return optimizer


def _schedule() -> ConfigDict:
    schedule = ConfigDict()
    schedule.name = "step"  # 'step', 'step_early', 'cosine', 'constant' or 'package.module:attribute'
    schedule.milestones = ()  # numbers of epochs after which a step schedule lowers the learning rate
    schedule.factor = 0.1  # multiplies the learning rate at a milestone
    schedule.warmup_epochs = 0  # epochs of linear warm-up of the learning rate
    schedule.args = ConfigDict()  # arguments of a schedule of your own
    return schedule


def _average() -> ConfigDict:
    """Returns the fields of an average of the weights, which replaces them after the last epoch."""
    average = ConfigDict()
    average.name = ""  # 'ema' or 'swa'; BatchNorm's running statistics are then estimated again, on the last epoch
    average.decay = 0.999  # ema only: share of the average that an update keeps
    average.start = 0  # number of the epoch after which averaging begins
    return average


def check(config: ConfigDict) -> None:
    """Checks a whole config against the schema: unknown and missing fields, types, and values out of range.

    Args:
      config: Resolved config, from one of kdjax's files or the user's own.

    Raises:
      UserError: Names every wrong field, what is wrong with it, and for an unknown field the nearest right name.
    """
    faults = list(_field_faults(config, defaults(), "config"))
    if not faults:  # only fields of the right type can be compared with their ranges
        rules = (_teacher_faults, _protocol_faults, _loss_faults, _warmup_faults, _choice_faults, _range_faults)
        rules += (_average_faults, _item_faults)
        faults = [fault for rule in rules for fault in rule(config.to_dict())]
    if faults:
        raise UserError(" ".join(faults))


def _field_faults(config: ConfigDict, schema: ConfigDict, where: str) -> Iterator[str]:
    if where in FREE:
        return
    for field in config:
        if field not in schema:
            yield f"{where} has no field '{field}'.{nearest(field, schema)}"
    for field, default in schema.items():
        value = config.get(field)
        if field not in config:
            yield f"{where}.{field} is missing; begin your config with kdjax.config.defaults()."
        elif not isinstance(default, ConfigDict):
            yield from _type_faults(value, default, f"{where}.{field}")
        elif isinstance(value, ConfigDict):
            yield from _field_faults(value, default, f"{where}.{field}")
        else:
            yield f"{where}.{field} must be a mapping, not {value!r}."


def check_stored(config: Mapping, where: str) -> None:
    """Checks the types in a stored config, which may lack fields that have come since, or have some that have gone.

    Args:
      config: A resolved config as plain mappings.
      where: The file that has it, for the message.

    Raises:
      UserError: Names the first wrong field.
    """
    faults = [fault for fault in _stored_faults(config, _schema(), "config")]
    filled = with_defaults(config) if not faults else {}
    if filled:
        faults = [*_teacher_faults(filled), *_protocol_faults(filled)]
        faults += _loss_faults(filled) if filled["losses"] else []
    if faults:
        raise UserError(f"{where} is damaged: {faults[0]} Repair it, or delete its folder and train the run again.")


@functools.lru_cache(maxsize=1)
def _schema() -> dict:
    return defaults().to_dict()


def _stored_faults(config: Mapping, schema: Mapping, where: str) -> Iterator[str]:
    for field, default in schema.items():
        path = f"{where}.{field}"
        if field not in config:
            continue
        if not isinstance(default, Mapping):
            yield from _type_faults(config[field], default, path)
        elif not isinstance(config[field], Mapping):
            yield f"{path} must be a mapping, not {config[field]!r}."
        elif path not in FREE:
            yield from _stored_faults(config[field], default, path)


def _type_faults(value: object, default: object, where: str) -> Iterator[str]:
    allowed = {bool: bool, int: int, float: (int, float), str: str, tuple: (tuple, list)}[type(default)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
        yield f"{where} must be a {type(default).__name__}, not {value!r}."


def _teacher_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for name, teacher in config["teachers"].items():
        where = f"config.teachers.{name}"
        if not isinstance(teacher, Mapping) or not (teacher.get("run") or teacher.get("logits")):
            yield (
                f"{where} must be a mapping with the name of a run: {{'run': 'digits/mlp-mse-s0'}}, or with a file of "
                "outputs: {'logits': 'teacher.npy'}."
            )
            continue
        if teacher.get("run") and teacher.get("logits"):
            yield f"{where} has a run and a file of logits; leave one of them empty, such as --{where}.run= ."
        if teacher.get("logits") and teacher.get("checkpoint", "last") != "last":
            yield f"{where}.checkpoint is that of a run; leave it out beside a file of logits."
        for field, value in teacher.items():
            if field not in TEACHER:
                yield f"{where} has no field '{field}'.{nearest(field, TEACHER)}"
            elif field in ("weight", "temperature"):
                other = f" or '{FITTED}'" if field == "temperature" else ""
                if not (_is_positive(value) or (other and value == FITTED)):
                    yield f"{where}.{field} must be a number above 0{other}, not {value!r}."
            elif field != "checkpoint":  # a step may be an int
                yield from _type_faults(value, TEACHER[field], f"{where}.{field}")
        if teacher.get("output", "") not in (choices := CHOICES["teachers.NAME.output"]):
            yield f"{where}.output must be {_one_of(choices[1:])}, not {teacher['output']!r}."


def _protocol_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for name, arguments in config["data"]["protocols"].items():
        if not isinstance(arguments, Mapping):
            yield f"config.data.protocols.{name} must be a mapping of its arguments, not {arguments!r}."


def _loss_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if not config["losses"]:
        yield "config.losses is empty; set at least one, such as {'cross_entropy': {'weight': 1.0}}."
    for name, term in config["losses"].items():
        if not isinstance(term, Mapping) or "weight" not in term:
            yield f"config.losses.{name} must be a mapping with a 'weight', not {term!r}."


def _warmup_faults(config: Mapping[str, Any]) -> Iterator[str]:
    warmup, losses = config["warmup"], config["losses"]
    for name, weight in warmup["losses"].items():
        if name not in losses:
            yield f"config.warmup.losses has '{name}', which is not in config.losses.{nearest(name, losses)}"
        if not _is_number(weight):
            yield f"config.warmup.losses.{name} must be a number, the weight of the loss, not {weight!r}."
    if bool(warmup["epochs"]) != bool(warmup["losses"]):
        yield "config.warmup needs both losses and epochs above 0, or neither."


def _average_faults(config: Mapping[str, Any]) -> Iterator[str]:
    average = config["average"]
    if average["name"] and average["start"] >= config["epochs"]:
        yield f"config.average.start must be below config.epochs, {config['epochs']}, not {average['start']}."


def _choice_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for field, choices in CHOICES.items():
        if field.startswith("teachers."):
            continue
        value = _value_of(config, field)
        if value not in choices:
            yield f"config.{field} must be {_one_of(choices)}, not {value!r}.{_close(value, choices)}"
    if "dtype" in config["model"]["args"]:
        yield "config.model.args must not have 'dtype'; set config.model.dtype."


def _item_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for field, (words, holds) in ITEMS.items():
        if not all(map(holds, value := _value_of(config, field))):
            yield f"config.{field} must be a tuple of {words}, not {value!r}."


def _range_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for field, allowed in RANGES.items():
        value = _value_of(config, field)
        if not (math.isfinite(value) and allowed.holds(value)):
            yield f"config.{field} must be {allowed.words}, not {value!r}."


def _value_of(config: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a dotted field, such as 'data.size'."""
    value = config
    for part in field.split("."):
        value = value[part]
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _close(value: str, choices: Sequence[str]) -> str:
    """Returns ' Did you mean X?' if a choice is close to the value; all choices stand in the message already."""
    hint = nearest(value, choices)
    return hint if hint.startswith(" Did") else ""


def _one_of(choices: Sequence[str]) -> str:
    """Returns the choices in words: \"'a', 'b' or 'c'\"."""
    words = [f"'{choice}'" for choice in choices]
    return " or ".join([", ".join(words[:-1]), words[-1]])


def with_defaults(config: Mapping) -> dict:
    """Returns a plain config in which missing fields have their defaults, such as one that an older kdjax wrote."""
    filled = _filled(config, _schema())
    teachers = {
        name: {**TEACHER, **teacher} if isinstance(teacher, Mapping) else teacher
        for name, teacher in filled["teachers"].items()
    }
    return {**filled, "teachers": teachers}


def _filled(config: Mapping, schema: Mapping) -> dict:
    inner = {name: _filled(config.get(name, {}), value) for name, value in schema.items() if isinstance(value, Mapping)}
    return {**schema, **config, **inner}


def printed(published: Mapping, teachers: Iterable[Sequence[str]]) -> float | None:
    """Returns the accuracy (%) that a paper reports for a run, or None if there is none or the teachers differ.

    Args:
      published: `config.published` of the run. Where it has `teacher_losses`, its accuracy was measured with teachers
        that were trained with exactly those losses.
      teachers: Names of the losses of each teacher of the run; an empty sequence for imported weights, whose losses
        are not known.
    """
    asked = published.get("teacher_losses")
    if asked is not None and any(losses and tuple(losses) != tuple(asked) for losses in teachers):
        return None
    return published.get("accuracy")


def recipe(config: ConfigDict, **facts: Any) -> dict[str, Any]:
    """Returns `config.published.recipe`: what the published accuracy of a config belongs to.

    Args:
      config: The config as its file makes it, before anything is overridden.
      **facts: `images`, the number of training images, and `teacher`, the name of the teacher's network, where known.

    Returns:
      The facts, and in `config` the fields in which the config differs from the defaults.
    """
    fields = {field: value for field, value in config.to_dict().items() if field not in OPERATIONAL}
    return {"config": _changed(fields, _schema()), **facts}


def _changed(config: Mapping, schema: Mapping) -> dict[str, Any]:
    """Returns the fields of a config that have another value than the schema."""
    found: dict[str, Any] = {}
    for field, value in config.items():
        default = schema.get(field)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _changed(value, default)
            default = {}
        if value != default:
            found[field] = value
    return found


def unlike_recipe(config: Mapping) -> list[str]:
    """Returns in what a config differs from the recipe of its published accuracy, as 'epochs 1 instead of 240'.

    Args:
      config: A whole config as a plain dict. If its published accuracy has no recipe, only `epochs` and `view` of the
        latter are compared.
    """
    published = config["published"]
    known = published.get("recipe", {}).get("config")
    if known is None:
        view = published.get("view") if config["data"]["view"] else ""
        stated = {"epochs": published.get("epochs"), "data.view": view}
        pairs = [(path, _at(config, path), value) for path, value in stated.items() if value]
    else:
        own, paper = (dict(_recipe_leaves(with_defaults(fields))) for fields in (config, known))
        pairs = [(path, own.get(path), paper.get(path)) for path in dict.fromkeys(["epochs", *own, *paper])]
    return [f"{path} {_told(own)} instead of {_told(paper)}" for path, own, paper in pairs if own != paper]


def _at(config: Mapping, path: str) -> Any:
    return functools.reduce(lambda section, field: section[field], path.split("."), config)


def _recipe_leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields path and value of the fields of a recipe: all but names, seeds and what changes no last accuracy."""
    left_out = (*SEEDS, *WITHOUT_EFFECT, "name", "select", "select_by", "data.allow_overlap", "data.skip_bad")
    for field, value in config.items():
        path = f"{prefix}{field}"
        of_place = prefix.startswith("teachers.") and field in ("run", "logits", "made_by")
        if path in left_out or of_place:
            continue
        if isinstance(value, Mapping):
            yield from _recipe_leaves(value, f"{path}.")
        else:
            yield path, list(value) if isinstance(value, tuple) else value


def _told(value: Any) -> str:
    return "unset" if value in (None, "", []) else f"{value:g}" if isinstance(value, float) else str(value)


def differences(old: Mapping, new: Mapping, where: str = "config") -> list[str]:
    """Returns the fields in which two resolved configs (plain dicts) differ, as 'config.a.b: old -> new'."""
    found = []
    for field in sorted({*old, *new}):
        path, a, b = f"{where}.{field}", old.get(field), new.get(field)
        if field in OPERATIONAL and where == "config":
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, path)
        elif a != b:
            found.append(f"{path}: {a!r} -> {b!r}")
    return found


def order_seed(config: ConfigDict) -> int:
    """Returns the seed of the order of the examples, their views, their mixing and the choice among teachers."""
    seed: Any = config["seed"]
    data: Any = config["data"]
    return seed if data["order_seed"] < 0 else data["order_seed"]


def teacher_name(teacher: Mapping[str, Any]) -> str:
    """Returns what a table calls a teacher of a config: the name of its run, or that of its file without the ending."""
    file = str(teacher.get("logits", "")).rpartition("/")[2]
    return str(teacher["run"]) if teacher.get("run") else plain_word(file.rpartition(".")[0] or file)


def plain_word(word: str) -> str:
    """Returns the word with every character replaced that may not be in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", word)
