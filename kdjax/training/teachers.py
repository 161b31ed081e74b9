"""Frozen teachers: read from the store, rebuilt from their own manifests, and checked against the student's config."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from kdjax.data import Dataset, load_dataset, split_hash
from kdjax.distillation.terms import find_loss
from kdjax.errors import UserError, nearest
from kdjax.store import Store
from kdjax.training.identity import ByIdentity
from kdjax.training.networks import load_network
from kdjax.training.spec import Model
from kdjax.types import Config


class Teacher(NamedTuple):
    """A frozen network.

    Attributes:
      model: Its module.
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      num_classes: Width of its logits.
      output: What its logits mean: 'softmax' or 'clipped_logits'.
      record: What a student's manifest keeps of it.
      data: Its own `config.data`, None where that is not known (imported weights).
      labelled: Hash of the examples whose labels it was trained on, where its manifest has one.
      class_names: Names of the classes of its logits, where its manifest has them.
    """

    model: Model
    variables: dict[str, Any]
    num_classes: int
    output: str
    record: dict[str, Any]
    data: dict[str, Any] | None
    labelled: str | None = None
    class_names: tuple[str, ...] | None = None


# (run, checkpoint, how its output is read) -> the teacher: runs that are planned together share their teachers' arrays.
LoadedTeachers = dict[tuple[str, str, str], Teacher]


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
        key = (fields["run"], str(fields.get("checkpoint", "last")), fields.get("output", ""))
        found[name] = loaded[key] if key in loaded else _load(name, fields, store)
        loaded[key] = found[name]
    return found


def _load(name: str, fields: Mapping[str, Any], store: Store) -> Teacher:
    run = store.run(fields["run"])
    if run.manifest is None:
        made_by = fields.get("made_by", "")
        generic = f"python -m kdjax.train_teacher --config=... --run={run.name}"
        make = made_by if made_by.endswith(f"--run={run.name}") else generic  # the run may have been overridden
        hint = nearest(run.name, store.runs()) if made_by != make else ""
        make += f" --store={store.root}"  # the command must fill this store, even if it is not the default one
        raise UserError(f"teacher '{name}': {store.root} has no run '{run.name}'.{hint} Make it with: {make}")
    checkpoint = str(fields.get("checkpoint", "last"))
    if run.result is None and not checkpoint.isdigit():
        raise UserError(f"teacher '{name}': run '{run.name}' has not finished; repeat its command to resume it.")
    network = load_network(run, checkpoint)
    record = {"run": run.name, "checkpoint": checkpoint, "step": network.step}
    output = _output_space(name, fields, network.manifest)
    classes = network.manifest["model"]["num_classes"]
    data = network.manifest["config"]["data"]
    data = data if data["name"] else None
    labelled = network.manifest.get("labelled", {}).get("sha256")
    names = tuple(network.manifest.get("class_names") or ()) or None
    return Teacher(network.model, network.variables, classes, output, record, data, labelled, names)


def _output_space(name: str, fields: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    output = fields.get("output", "")
    if manifest.get("loss_space") == "logits" and not output:
        raise UserError(
            f"teacher '{name}': run '{fields['run']}' was fitted in logit space, where a softmax says almost nothing; "
            f"set config.teachers.{name}.output to 'clipped_logits' (its logits as probabilities) or 'softmax'."
        )
    return output or "softmax"


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
    for name, teacher in teachers.items():
        columns = config.teachers[name].classes
        exist = all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c < teacher.num_classes for c in columns)
        if not exist or len(set(columns)) < len(columns):
            raise UserError(
                f"config.teachers.{name}.classes (or config.teacher_classes) must name columns from 0 to "
                f"{teacher.num_classes - 1}, each once, not {tuple(columns)}."
            )
    for (field, branches), names in _comparisons(config, teachers).items():
        for name in names:
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
      UserError: A teacher was trained on validation images that choose the best checkpoint, or on hidden labels.
    """
    for name, teacher in teachers.items():
        if teacher.data is None or _identity_of(teacher.data) != _identity_of(config.data.to_dict()):
            continue
        teacher_dataset = load_dataset(type(config.data)(teacher.data), data_dir)
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
