"""Frozen teachers: read from the store, rebuilt from their own manifests, and checked against the student's config."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.errors
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from kdjax import models, own_code
from kdjax.data import Dataset, load_dataset, split_hash
from kdjax.distillation.terms import find_loss
from kdjax.errors import UserError, nearest
from kdjax.interop.output_files import StoredOutputs, read_outputs
from kdjax.store import Run, Store
from kdjax.store.content import variables_hash
from kdjax.training.identity import ByIdentity
from kdjax.training.missing_teacher import how_to_make
from kdjax.training.networks import load_network
from kdjax.training.spec import Model
from kdjax.types import Config


class Teacher(NamedTuple):
    """A frozen network, or what one has put out.

    Attributes:
      model: Its module; None for a file of outputs.
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      num_classes: Width of its logits.
      output: What its logits mean: 'softmax' or 'clipped_logits'.
      record: What a student's manifest keeps of it.
      data: Its own `config.data`, None where that is not known (imported weights).
      labelled: Hash of the examples whose labels it was trained on, where its manifest has one.
      class_names: Names of the classes of its logits, where its manifest has them.
      stored: Its run, None for a teacher that is not from a store.
      sha256: Hash of its variables or of its file, '' for a teacher that is from neither.
      outputs: Its file of outputs, which then takes the place of module and variables; None for a network.
    """

    model: Model | None
    variables: dict[str, Any]
    num_classes: int
    output: str
    record: dict[str, Any]
    data: dict[str, Any] | None
    labelled: str | None = None
    class_names: tuple[str, ...] | None = None
    stored: Run | None = None
    sha256: str = ""
    outputs: StoredOutputs | None = None


# (run or file, checkpoint, how its output is read) -> the teacher: runs that are planned together share their teachers'
# arrays.
LoadedTeachers = dict[tuple[str, str, str], Teacher]


def teacher_key(fields: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the key in LoadedTeachers of a field of `config.teachers`."""
    place = fields["run"] or f"file:{fields['logits']}"
    return place, str(fields.get("checkpoint", "last")), fields.get("output", "")


def load_teachers(config: Config, store: Store, loaded: LoadedTeachers | None = None) -> dict[str, Teacher]:
    """Loads every teacher of `config.teachers`.

    Args:
      config: Resolved config.
      store: The store that has their runs.
      loaded: Teachers that were loaded before, which gets those that are loaded now.

    Raises:
      UserError: The store lacks a run (the message has the command that makes it), the run has not finished or does not
        keep the checkpoint, or it was fitted in logit space and the config does not say how to read its output.
    """
    loaded, found = {} if loaded is None else loaded, {}
    for name, fields in config.teachers.items():
        key = teacher_key(fields)
        load = _load if fields["run"] else _load_file
        found[name] = loaded[key] if key in loaded else load(name, fields, store)
        loaded[key] = found[name]
    return found


def _load(name: str, fields: Mapping[str, Any], store: Store) -> Teacher:
    run = store.run(fields["run"])
    if run.manifest is None:
        hint = nearest(run.name, store.runs()) if not fields.get("made_by", "").endswith(f"--run={run.name}") else ""
        make = how_to_make(name, fields, str(store.root))
        raise UserError(f"teacher '{name}': {store.root} has no run '{run.name}'.{hint} {make}")
    checkpoint = str(fields.get("checkpoint", "last"))
    if run.result is None and not checkpoint.isdigit():
        raise UserError(f"teacher '{name}': run '{run.name}' has not finished; repeat its command to resume it.")
    network = load_network(run, checkpoint)
    record = {"run": run.name, "checkpoint": checkpoint, "step": network.step}
    own = variables_hash(network.variables)
    output = _output_space(name, fields, network.manifest)
    classes = network.manifest["model"]["num_classes"]
    data = network.manifest["config"]["data"]
    data = data if data["name"] else None
    labelled = network.manifest.get("labelled", {}).get("sha256")
    names = tuple(network.manifest.get("class_names") or ()) or None
    return Teacher(network.model, network.variables, classes, output, record, data, labelled, names, run, own)


def _load_file(name: str, fields: Mapping[str, Any], store: Store) -> Teacher:
    """Opens a teacher's file of outputs; no code that its companion names is imported."""
    del store
    try:
        outputs = read_outputs(fields["logits"])
    except UserError as error:
        raise UserError(f"config.teachers.{name}.logits: {error}") from error
    about = outputs.about
    output = _output_space(name, {**fields, "run": fields["logits"]}, about)
    classes = outputs.shape[-1] if outputs.top is None else 0
    run = {field: about[field] for field in ("run", "checkpoint", "step") if field in about}
    record = {"logits": fields["logits"], "sha256": outputs.sha256, **run}
    names = tuple(about.get("class_names") or ()) or None
    return Teacher(
        None, {}, classes, output, record, _data_of(about), about.get("labelled"), names, None, outputs.sha256, outputs
    )


def _data_of(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the `config.data` of the run that a file's outputs are of, None where that is not known or names code."""
    data = about.get("trained_on")
    return None if not data or own_code.names_in_data(data) else dict(data)


def _output_space(name: str, fields: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    output = fields.get("output", "")
    if manifest.get("loss_space") == "logits" and not output:
        raise UserError(
            f"teacher '{name}': run '{fields['run']}' was fitted in logit space, where a softmax says almost nothing; "
            f"set config.teachers.{name}.output to 'clipped_logits' (its logits as probabilities) or 'softmax'."
        )
    return output or "softmax"


def freeze(teacher: Teacher, config: Config, variables: Mapping[str, Any], input_shape: Sequence[int]) -> Teacher:
    """Returns a teacher as a step runs it: in the type that the config says, with BatchNorm folded (`models.fold`).

    Args:
      teacher: Any teacher.
      config: Resolved config of the student.
      variables: The student's variables.
      input_shape: Shape of a batch of images, batch axis included.

    Raises:
      UserError: config.teacher_dtype names a type, and the teacher's network takes none.
    """
    if teacher.model is None:
        return teacher
    teacher = in_dtype(match_precision(teacher, variables), config.teacher_dtype, config.model.dtype)
    if config.teacher_batch_norm != "running" or not _gains_by_folding(teacher):
        return teacher
    return _folded(ByIdentity(teacher), tuple(input_shape))


def in_dtype(teacher: Teacher, dtype: str, students: str) -> Teacher:
    """Returns a teacher whose network computes in the type that `config.teacher_dtype` says.

    Args:
      teacher: Any teacher.
      dtype: Value of config.teacher_dtype.
      students: Value of config.model.dtype.

    Raises:
      UserError: The config names a type, and the network takes none.
    """
    if dtype == "trained":
        return teacher
    module = teacher.model.module if isinstance(teacher.model, models.FeatureExtractor) else teacher.model
    if not hasattr(module, "dtype"):
        if dtype != "student":
            name = type(module).__name__
            raise UserError(
                f"config.teacher_dtype is '{dtype}', and the teacher's {name} takes no dtype; set 'trained'."
            )
        return teacher
    wanted = models.DTYPES[students if dtype == "student" else dtype]
    return teacher if module.dtype == wanted else _in_dtype(ByIdentity(teacher), wanted)


@functools.lru_cache(maxsize=64)  # students that share a teacher share the twin that they run
def _in_dtype(teacher: ByIdentity, dtype: Any) -> Teacher:
    model = teacher.value.model
    if isinstance(model, models.FeatureExtractor):
        return teacher.value._replace(model=model._replace(module=model.module.clone(dtype=dtype)))
    return teacher.value._replace(model=model.clone(dtype=dtype))


def _gains_by_folding(teacher: Teacher) -> bool:
    """Whether a teacher may have BatchNorm, or weights to cast; others need not be traced."""
    module = teacher.model.module if isinstance(teacher.model, models.FeatureExtractor) else teacher.model
    return bool(teacher.variables.get("batch_stats")) or getattr(module, "dtype", None) is not None


@functools.lru_cache(maxsize=64)
def _folded(teacher: ByIdentity, input_shape: tuple[int, ...]) -> Teacher:
    model, variables = teacher.value.model, teacher.value.variables
    try:
        return teacher.value._replace(variables=models.fold(model, variables, input_shape))
    except (UserError, flax.errors.FlaxError, TypeError, ValueError):  # it cannot see the images, which is said later
        return teacher.value


def match_precision(teacher: Teacher, variables: Mapping[str, Any]) -> Teacher:
    """Returns a teacher whose floating leaves are as wide as the student's.

    A float32 teacher beside a float64 student would compute parts of its output (BatchNorm's scale) in float32.

    Args:
      teacher: Any teacher.
      variables: The student's variables.
    """
    student = {leaf.dtype for leaf in jax.tree.leaves(variables["params"])}
    if np.dtype(np.float64) not in student:
        return teacher
    return _widened(ByIdentity(teacher))


@functools.lru_cache(maxsize=64)  # students that share a teacher share its widened twin, too
def _widened(teacher: ByIdentity) -> Teacher:
    variables = teacher.value.variables
    widened = jax.tree.map(lambda leaf: leaf.astype(np.float64) if _is_float(leaf) else leaf, variables)
    return teacher.value._replace(variables=widened)


def _is_float(leaf: np.ndarray) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, np.floating)


def check_classes(
    config: Config,
    teachers: Mapping[str, Teacher],
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Refuses a teacher of other classes where its logits are read, and columns that it lacks.

    Args:
      config: Resolved config.
      teachers: Teachers by their names in it.
      num_classes: Number of classes of the data.
      class_names: Their names, which are compared where both sides have names and the config chooses no columns.

    Raises:
      UserError: names the field of the config, the teacher and the difference.
    """
    teachers = {name: teacher for name, teacher in teachers.items() if teacher.outputs is None or teacher.num_classes}
    for name, teacher in teachers.items():
        columns = config.teachers[name].classes
        exist = all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c < teacher.num_classes for c in columns)
        if not exist or len(set(columns)) < len(columns):
            raise UserError(
                f"config.teachers.{name}.classes (or config.teacher_classes) must name columns from 0 to "
                f"{teacher.num_classes - 1}, each once, not {tuple(columns)}."
            )
    for (field, branches), names in _comparisons(config, teachers).items():
        for name in filter(teachers.get, names):  # a file of top classes has no width
            own = config.teachers[name]
            if branches and (own.classes or own.temperature != 1):
                raise UserError(
                    f"{field} compares branches as they are: there teacher '{name}' can have no classes and no "
                    "temperature of its own."
                )
            difference = _other_classes(teachers[name], own.classes, num_classes, class_names)
            if difference:
                raise UserError(
                    f"{field} compares logits, and teacher '{name}' has {difference}; name a teacher that was trained "
                    f"on the same classes, or its columns of these classes in config.teachers.{name}.classes or "
                    "config.teacher_classes."
                )


def _other_classes(teacher: Teacher, columns: tuple, num_classes: int, class_names: tuple[str, ...] | None) -> str:
    """Says how a teacher's classes differ from the data's, '' where they do not."""
    count = len(columns) or teacher.num_classes
    if count != num_classes:
        return f"{count} classes while the data has {num_classes}"
    if columns or not teacher.class_names or not class_names:  # the user has chosen the columns, or no names are known
        return ""
    pairs = enumerate(zip(teacher.class_names, class_names))
    differing = (f"{a!r} as class {i}, where the data has {b!r}" for i, (a, b) in pairs if a != b)
    return next(differing, "")


def _comparisons(config: Config, teachers: Mapping[str, Teacher]) -> dict[tuple[str, bool], list[str]]:
    """Returns (field of the config that compares logits, whether it compares branches) -> the teachers it reads."""
    found = {}
    for key, term in config.losses.items():
        loss = find_loss(term["loss"])
        if loss.reads_teacher_logits:
            names = [term["teacher"]] if term["teacher"] else list(teachers)
            found[f"config.losses.{key}", loss.reads_branches] = names
    return found | ({("config.diagnostics", False): list(teachers)} if config.diagnostics else {})


def _identity_of(data: Mapping[str, Any]) -> str:
    """Returns the fields that decide which images a data set has, in one form for a manifest and for a config."""
    args = {name: value for name, value in data["args"].items() if name not in ("scale", "mean", "std")}
    return json.dumps([data["name"], args], sort_keys=True)


def check_splits(config: Config, dataset: Dataset, teachers: Mapping[str, Teacher], data_dir: str) -> None:
    """Checks that no teacher was trained on held-out images or on labels that the student does not have.

    Held-out images are only warned of, unless the student's best checkpoint would be chosen on them.

    Raises:
      UserError: A teacher was trained on validation images that choose the best checkpoint, or on hidden labels, or its
        data was replaced since.
    """
    for name, teacher in teachers.items():
        if teacher.data is None or _identity_of(teacher.data) != _identity_of(config.data.to_dict()):
            continue
        if teacher.stored is not None:
            teacher.stored.check_content({"data": dataset.source_hashes})
        teacher_dataset = _dataset_of(name, teacher, data_dir)
        _check_labels(name, config, dataset, teacher, teacher_dataset)
        trained_on = teacher_dataset.splits["train"]
        for split in ("validation", "test"):
            rows = dataset.splits.get(split, ())
            shared = len(np.intersect1d(rows, trained_on))
            if not shared:
                continue
            line = (
                f"teacher '{name}' was trained on {shared} of the {len(rows)} {split} images "
                f"(its data.split_seed is {teacher.data['split_seed']}, yours {config.data.split_seed})"
            )
            if split == "validation" and config.select == "validation":
                raise UserError(f"{line}: best would be chosen on them; use its split_seed or --config.select=last.")
            logging.warning("%s: accuracies there are too high.", line)


def _dataset_of(name: str, teacher: Teacher, data_dir: str) -> Dataset:
    """Loads a teacher's data; code that only its manifest names is refused."""
    if teacher.stored is not None:
        where = f"teacher '{name}': run '{teacher.stored.name}'"
        own_code.refuse_untrusted(own_code.names_in_data(teacher.data or {}), teacher.stored.trust, where)
    return load_dataset(ConfigDict(teacher.data), data_dir)


def held_out_rows(
    config: Config, dataset: Dataset, teachers: Mapping[str, Teacher], data_dir: str
) -> dict[str, np.ndarray]:
    """Returns, for the ensemble 'held_out', which rows of the student's data each teacher was not trained on.

    Args:
      config: Resolved config.
      dataset: The student's data.
      teachers: Teachers by their names in the config.
      data_dir: Directory of the data sets that are not embedded.

    Returns:
      Name -> [rows of the data set] bool; {} for the other ensembles.

    Raises:
      UserError: There are fewer than two teachers, a loss reads more than logits, it is not known what a teacher was
        trained on, or every teacher was trained on some training image.
    """
    if config.ensemble != "held_out":
        return {}
    where = "config.ensemble 'held_out'"
    if len(teachers) < 2:
        raise UserError(f"{where} needs at least two teachers, each trained without a part of the images.")
    for key, term in config.losses.items():
        loss = find_loss(term["loss"])
        if loss.reads_teacher and not loss.reads_logits_alone and not term["teacher"]:
            raise UserError(
                f"{where} chooses a teacher for each example, and config.losses.{key} reads more than a teacher's "
                f"logits; name its teacher: config.losses.{key}.teacher."
            )
    found = {}
    for name, teacher in teachers.items():
        if teacher.data is None:
            raise UserError(f"{where}: it is not known which images teacher '{name}' was trained on.")
        found[name] = np.ones(len(dataset.labels), bool)
        if _identity_of(teacher.data) == _identity_of(config.data.to_dict()):
            found[name][_dataset_of(name, teacher, data_dir).splits["train"]] = False
    seen_by_all = ~np.any([found[name][dataset.splits["train"]] for name in teachers], axis=0)
    if seen_by_all.any():
        raise UserError(
            f"{where}: all teachers were trained on {seen_by_all.sum()} of the {len(seen_by_all)} training images; "
            "train each without a part: config.data.protocols.fold."
        )
    return found


def _check_labels(name: str, config: Config, dataset: Dataset, teacher: Teacher, teacher_dataset: Dataset) -> None:
    """Refuses a teacher that was trained on labels which a partly labelled student does not have."""
    partly = any(record["protocol"] == "labelled_fraction" for record in dataset.protocols)
    if not partly or teacher.labelled == split_hash(dataset.labelled_train) or config.teachers[name].more_labels:
        return
    extra = np.setdiff1d(teacher_dataset.labelled_train, dataset.labelled_train)
    if len(extra):
        raise UserError(
            f"teacher '{name}' was trained on {len(extra)} labels that the student does not have; train it with the "
            f"student's config.data, or allow it with --config.teachers.{name}.more_labels=True."
        )
