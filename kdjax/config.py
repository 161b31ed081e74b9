"""The defaults of every field, which are the schema: a field that they lack is refused. No jax in here."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kdjax.errors import UserError, nearest

# What a teacher may say in `config.teachers = {'a': {...}}`.
TEACHER = {
    "run": "",  # the run's name in the store
    "weight": 1.0,  # its share among several teachers
    "temperature": 1.0,  # its logits are divided by it before any loss reads them
    "classes": (),  # its columns that are the data's classes, in their order; () for config.teacher_classes
    "checkpoint": "last",  # 'last', 'best' or a step
    "output": "",  # 'softmax' | 'clipped_logits', for a teacher that was fitted in logit space
    "made_by": "",  # the command that trains it, for the message when the store lacks it
    "view": "",  # that it sees: '' for config.data.teacher_view, or else the student's
    "more_labels": False,  # allows a teacher that was trained on labels that the student does not have
}

# Sections whose floats are values that a compiled step takes as arguments; all else is structure.
TRACED = ("losses", "warmup", "optimizer", "schedule", "teachers", "seed")

# Sections that may change under a run's name: they do not touch its numbers.
OPERATIONAL = ("checkpoint", "notes", "published")


def defaults() -> ConfigDict:
    """Returns a fresh config with every field there is, at its default value."""
    config = ConfigDict()
    config.name = ""  # the config's short name, a part of the run's default name
    config.seed = 0  # initial weights, order and augmentation; never the split
    config.epochs = 40
    config.batch_size = 64  # over all devices
    config.eval_batch_size = 512  # over all devices
    config.eval_every = 1  # epochs
    config.init_from = ""  # a run whose weights this one starts from; a head of another shape is drawn afresh
    config.init_checkpoint = "last"  # of that run: 'last', 'best' or a step
    config.trainable = "all"  # 'all' | 'head': the body stays as it is, its BatchNorm on running statistics
    config.select = "validation"  # what 'best' means: 'validation' | 'last' (no best is kept)
    config.diagnostics = False  # log entropies, KL to the transformed teacher, mean WTTM weight

    config.data = ConfigDict()
    config.data.name = "digits"  # a row of DATASETS, 'folder:PATH', 'list:FILE', 'tfds:NAME' or 'package.module:attr'
    config.data.args = ConfigDict()  # what its loader takes
    config.data.split_seed = 0  # which images are held out; a teacher and its students share it
    config.data.validation = 0.1  # fraction of the training images held out
    config.data.view = ""  # such as 'crop_flip+cutout:16', see kdjax/data/views/names.py; '': the data set's own
    config.data.teacher_view = ""  # where teachers see another one than the student; crops and flips stay shared
    config.data.size = 0  # side to which images are resized; 0: as stored
    config.data.interpolation = "bicubic"  # by which they are: 'bicubic' | 'bilinear'
    config.data.protocols = ConfigDict()  # name -> arguments, see kdjax.data.protocols
    config.data.stream = "auto"  # 'auto': sets that do not fit are streamed; 'always' | 'never'
    config.data.workers = -1  # processes that decode a stream; -1: half the cores; 0: threads
    config.data.skip_bad = False  # a stream skips and counts images that cannot be read
    config.data.allow_overlap = False  # lets images be in two splits
    config.data.targets = "labels"  # what label losses see: 'labels' | 'soft'

    config.model = ConfigDict()
    config.model.name = "mlp"  # a row of MODELS or 'package.module:attribute'
    config.model.args = ConfigDict()  # what its constructor takes besides num_classes
    config.model.dtype = "float32"  # of the computation; parameters, statistics and losses stay float32
    config.model.batch_norm = "global"  # statistics over the 'global' batch or 'per_device'
    config.model.running_variance = "biased"  # that BatchNorm averages: 'biased' as flax, 'unbiased' as PyTorch
    config.model.init = "paper"  # initial weights: 'paper', each network's own; 'torch', 'flax', the library's defaults
    config.model.features = ()  # picked by path: ('block1', 'block3'); () for the network's own
    config.model.pooled = ""  # such a path for the pooled vector; '' for the network's own, or the last feature's mean
    config.model.head = "fc"  # the classifier's name among the parameters

    config.teachers = ConfigDict()  # name -> TEACHER
    config.ensemble = (
        "losses"  # of several teachers: 'losses', a mean of each loss over them; losses of logits alone may
    )
    # see one teacher instead: the mean of 'logits' or of 'probs', or 'choice', one teacher an example by its weight
    config.teacher_classes = ()  # columns of teachers that are the data's classes; () where the classes are the same
    config.teacher_batch_norm = "running"  # statistics that teachers use: 'running', or the global 'batch' they see
    config.losses = ConfigDict()  # name -> {'weight': ..., 'loss': ..., hyper-parameters}

    config.warmup = ConfigDict()  # a phase before the epochs of training, for methods that begin with one
    config.warmup.epochs = 0
    config.warmup.losses = ConfigDict()  # name -> weight, of those in config.losses that count in it
    config.warmup.trains = "all"  # 'all' | 'body': the student without its head | 'distiller': the losses' own parts
    config.warmup.learning_rate = 0.0  # constant; 0: config.optimizer.learning_rate

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # 'sgd' | 'adamw'
    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.b1 = 0.9  # adamw
    config.optimizer.b2 = 0.999  # adamw
    config.optimizer.weight_decay = 5e-4
    config.optimizer.body_factor = 1.0  # of the learning rate, for all parameters but the head's
    config.optimizer.decay = "all"  # weight decay on 'all' parameters or on 'kernels'

    config.schedule = ConfigDict()
    config.schedule.name = "step"  # 'step' | 'step_early' | 'cosine' | 'constant' or 'package.module:attribute'
    config.schedule.milestones = ()  # epochs that end before a drop
    config.schedule.factor = 0.1  # of a drop
    config.schedule.warmup_epochs = 0
    config.schedule.args = ConfigDict()  # what a schedule of your own takes

    config.notes = ()  # what a user should be told when the run starts
    # What a paper prints for this run: accuracy (%), teacher, alone, protocol, source, teacher_losses (see `printed`).
    config.published = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 10  # and at the end; 0: at the end only
    return config


def check(config: ConfigDict) -> None:
    """Refuses fields that the schema lacks, missing sections, wrong types and values out of range.

    Args:
      config: a resolved config, from a file of kdjax or of the user's own.

    Raises:
      UserError: names the field, what is wrong with it and the nearest right name.
    """
    _check_fields(config, defaults(), "config")
    for name, teacher in config.teachers.items():
        _check_teacher(name, teacher)
    for name, arguments in config.data.protocols.items():
        if not isinstance(arguments, Mapping | ConfigDict):
            raise UserError(f"config.data.protocols.{name} must be a mapping of its arguments, not {arguments!r}.")
    for name, term in config.losses.items():
        if not isinstance(term, Mapping | ConfigDict) or "weight" not in term:
            raise UserError(f"config.losses.{name} must be a mapping with a 'weight', not {term!r}.")
    if not config.losses:
        raise UserError("config.losses is empty: name at least one, {'cross_entropy': {'weight': 1.0}}.")
    _check_warmup(config)
    _check_values(config)


def _check_fields(config: ConfigDict, schema: ConfigDict, where: str) -> None:
    free = where in (
        "config.data.args",
        "config.data.protocols",
        "config.model.args",
        "config.schedule.args",
        "config.teachers",
        "config.losses",
        "config.warmup.losses",
        "config.published",
    )
    if free:
        return
    for field in config:
        if field not in schema:
            raise UserError(f"{where} has no field '{field}'.{nearest(field, schema)}")
    for field, default in schema.items():
        if field not in config:
            raise UserError(f"{where}.{field} is missing; begin your config with kdjax.config.defaults().")
        if isinstance(default, ConfigDict):
            if not isinstance(config[field], ConfigDict):
                raise UserError(f"{where}.{field} must be a mapping, not {config[field]!r}.")
            _check_fields(config[field], default, f"{where}.{field}")
        else:
            _check_type(config[field], default, f"{where}.{field}")


def _check_type(value: Any, default: Any, where: str) -> None:
    allowed = {bool: bool, int: int, float: (int, float), str: str, tuple: (tuple, list)}[type(default)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UserError(f"{where} must be a {type(default).__name__}, not {value!r}.")


def _check_teacher(name: str, teacher: ConfigDict) -> None:
    where = f"config.teachers.{name}"
    if not isinstance(teacher, ConfigDict) or not teacher.get("run"):
        raise UserError(f"{where} must be a mapping with the name of a run: {{'run': 'digits/mlp-mse-s0'}}.")
    for field in teacher:
        if field not in TEACHER:
            raise UserError(f"{where} has no field '{field}'.{nearest(field, TEACHER)}")
    for field in ("weight", "temperature"):
        value = teacher.get(field, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UserError(f"{where}.{field} must be a number above 0, not {value!r}.")
    for field, default in TEACHER.items():
        if field in teacher and not isinstance(default, float) and field != "checkpoint":
            _check_type(teacher[field], default, f"{where}.{field}")
    if teacher.get("output", "") not in ("", "softmax", "clipped_logits"):
        raise UserError(f"{where}.output must be 'softmax' or 'clipped_logits', not '{teacher.output}'.")


def _check_warmup(config: ConfigDict) -> None:
    for name, weight in config.warmup.losses.items():
        if name not in config.losses:
            raise UserError(f"config.warmup.losses has '{name}', config.losses has not.{nearest(name, config.losses)}")
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise UserError(f"config.warmup.losses.{name} must be a number, its weight, not {weight!r}.")
    if bool(config.warmup.epochs) != bool(config.warmup.losses):
        raise UserError("config.warmup needs both epochs above 0 and losses, or neither.")


def _check_values(config: ConfigDict) -> None:
    """Ranges are checked here, on the config, since inside a step the numbers are traced."""
    rules = {
        "epochs": (config.epochs >= 1, "at least 1"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "eval_batch_size": (config.eval_batch_size >= 1, "at least 1"),
        "eval_every": (config.eval_every >= 1, "at least 1"),
        "ensemble": (
            config.ensemble in ("losses", "logits", "probs", "choice"),
            "'losses', 'logits', 'probs' or 'choice'",
        ),
        "teacher_batch_norm": (config.teacher_batch_norm in ("running", "batch"), "'running' or 'batch'"),
        "select": (config.select in ("validation", "last"), "'validation' or 'last'"),
        "data.validation": (0 <= config.data.validation < 1, "in [0, 1)"),
        "warmup.epochs": (config.warmup.epochs >= 0, "at least 0"),
        "warmup.trains": (config.warmup.trains in ("all", "body", "distiller"), "'all', 'body' or 'distiller'"),
        "warmup.learning_rate": (config.warmup.learning_rate >= 0, "at least 0"),
        "trainable": (config.trainable in ("all", "head"), "'all' or 'head'"),
        "data.size": (config.data.size >= 0, "at least 0"),
        "data.stream": (config.data.stream in ("auto", "always", "never"), "'auto', 'always' or 'never'"),
        "data.interpolation": (config.data.interpolation in ("bicubic", "bilinear"), "'bicubic' or 'bilinear'"),
        "data.workers": (config.data.workers >= -1, "at least -1"),
        "data.targets": (config.data.targets in ("labels", "soft"), "'labels' or 'soft'"),
        "model.dtype": (config.model.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
        "model.args": ("dtype" not in config.model.args, "without 'dtype' (set config.model.dtype)"),
        "model.batch_norm": (config.model.batch_norm in ("global", "per_device"), "'global' or 'per_device'"),
        "model.running_variance": (
            config.model.running_variance in ("biased", "unbiased"),
            "'biased' or 'unbiased'",
        ),
        "model.init": (config.model.init in ("paper", "torch", "flax"), "'paper', 'torch' or 'flax'"),
        "optimizer.body_factor": (config.optimizer.body_factor >= 0, "at least 0"),
        "optimizer.learning_rate": (config.optimizer.learning_rate > 0, "above 0"),
        "optimizer.momentum": (0 <= config.optimizer.momentum < 1, "in [0, 1)"),
        "optimizer.weight_decay": (config.optimizer.weight_decay >= 0, "at least 0"),
        "optimizer.decay": (config.optimizer.decay in ("all", "kernels"), "'all' or 'kernels'"),
        "schedule.factor": (config.schedule.factor > 0, "above 0"),
        "schedule.warmup_epochs": (config.schedule.warmup_epochs >= 0, "at least 0"),
        "checkpoint.every_epochs": (config.checkpoint.every_epochs >= 0, "at least 0"),
        "seed": (0 <= config.seed < 2**32, "in [0, 2^32)"),
        "data.split_seed": (0 <= config.data.split_seed < 2**32, "in [0, 2^32)"),
    }
    for field, (holds, allowed) in rules.items():
        if not holds:
            value = config
            for part in field.split("."):
                value = value[part]
            raise UserError(f"config.{field} must be {allowed}, not {value!r}.")


def with_defaults(config: Mapping) -> dict:
    """Returns a plain config with the fields that it lacks at their defaults: one that an older kdjax wrote down."""
    return _filled(config, defaults().to_dict())


def _filled(config: Mapping, schema: Mapping) -> dict:
    inner = {name: _filled(config.get(name, {}), value) for name, value in schema.items() if isinstance(value, Mapping)}
    return {**schema, **config, **inner}


def printed(published: Mapping, teachers: Iterable[Sequence[str]]) -> float | None:
    """Returns the accuracy (%) that a paper prints for a run, None for none or of other teachers than the run's.

    Args:
      published: a config's; with `teacher_losses` its number is of teachers that were trained with just those.
      teachers: names of the losses of each teacher; none at all for weights that were imported.
    """
    asked = published.get("teacher_losses")
    if asked is not None and any(losses and tuple(losses) != tuple(asked) for losses in teachers):
        return None
    return published.get("accuracy")


def differences(old: Mapping, new: Mapping, where: str = "config") -> list[str]:
    """Lists the fields in which two resolved configs (plain dicts) differ, as 'config.a.b: old -> new'."""
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


def default_run_name(config: ConfigDict) -> str:
    """Returns `<dataset>/<model>-<what>-s<seed>`, readable and a function of the config.

    What: the config's short name for a stage without teachers, else `<losses joined by +>-<teachers' last parts>`, and
    the view where the config names one.
    A split seed other than 0 joins the name.
    """
    if config.teachers:
        teachers = [teacher.run.rsplit("/", 1)[-1] for teacher in config.teachers.values()]
        view = [_plain(config.data.view.replace(":", ""))] if config.data.view else []
        what = "-".join(["+".join(config.losses), *teachers, *view])
    else:
        what = config.name or "+".join(config.losses)
    split = f"-split{config.data.split_seed}" if config.data.split_seed else ""
    protocols = "".join(_protocol_name(name, arguments) for name, arguments in config.data.protocols.items())
    model = config.model.name.replace(":", ".")
    return f"{data_name(config)}{protocols}/{model}-{what}{split}-s{config.seed}"


def data_name(config: ConfigDict) -> str:
    """Returns what a run's name calls its data set: its name, of a path the last part."""
    if config.data.name.startswith(("folder:", "list:")):
        return _plain(config.data.name.rstrip("/").rpartition("/")[2].replace(":", "."))
    return config.data.name.replace(":", ".")


def _protocol_name(name: str, arguments: Mapping) -> str:
    """'+long_tailed-100': a protocol with its plain arguments, short enough for a folder's name."""
    plain = [value for value in arguments.values() if isinstance(value, int | float | str)]
    words = [f"{value:g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1] for value in plain]
    return "-".join([f"+{name.replace(':', '.')}", *map(_plain, words)])


def _plain(word: str) -> str:
    """A word that may stand in a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", word)
