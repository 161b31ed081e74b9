"""Frozen teachers: read from the store, rebuilt from their own manifests, checked against what a student asks."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from kdjax import losses
from kdjax.data import Dataset, load_dataset, split_hash
from kdjax.distillation.distillers import reads_branches, reads_teacher_logits
from kdjax.errors import UserError, lookup, nearest
from kdjax.store import Store
from kdjax.training.networks import load_network


class Teacher(NamedTuple):
    """A frozen network.

    Attributes:
      model: its module.
      variables: NumPy arrays.
      num_classes: of its logits.
      output: 'softmax' or 'clipped_logits': what its logits mean.
      record: what a student's manifest keeps of it.
      data: its own `config.data`, None when nobody knows it (imported weights).
      labelled: hash of the examples whose labels it was trained on, where its manifest has one.
      class_names: of its logits, where its manifest has them.
    """

    model: Any
    variables: dict
    num_classes: int
    output: str
    record: dict
    data: dict | None
    labelled: str | None = None
    class_names: tuple[str, ...] | None = None


def load_teachers(config, store: Store) -> dict[str, Teacher]:
    """Loads every teacher of `config.teachers`.

    Raises:
      UserError: a run that the store lacks (with the command that makes it) or that has not finished, a checkpoint it
        does not keep, or one fitted in logit space whose `output` was not said.
    """
    return {name: _load(name, fields, store) for name, fields in config.teachers.items()}


def _load(name: str, fields: Mapping, store: Store) -> Teacher:
    run = store.run(fields["run"])
    if run.manifest is None:
        made_by = fields.get("made_by", "")
        generic = f"python -m kdjax.train_teacher --config=... --run={run.name}"
        make = made_by if made_by.endswith(f"--run={run.name}") else generic  # the run may have been overridden
        hint = nearest(run.name, store.runs()) if made_by != make else ""
        make += f" --store={store.root}"  # as printed it must fill this store, whichever it is
        raise UserError(f"teacher '{name}': {store.root} has no run '{run.name}'.{hint} Make it with: {make}")
    checkpoint = str(fields.get("checkpoint", "last"))
    if run.result is None and not checkpoint.isdigit():
        raise UserError(f"teacher '{name}': run '{run.name}' has not finished; run its command again to go on.")
    network = load_network(run, checkpoint)
    record = {"run": run.name, "checkpoint": checkpoint, "step": network.step}
    output = _output_space(name, fields, network.manifest)
    classes = network.manifest["model"]["num_classes"]
    data = network.manifest["config"]["data"]
    data = data if data["name"] else None
    labelled = network.manifest.get("labelled", {}).get("sha256")
    names = tuple(network.manifest.get("class_names") or ()) or None
    return Teacher(network.model, network.variables, classes, output, record, data, labelled, names)


def _output_space(name: str, fields: Mapping, manifest: Mapping) -> str:
    said = fields.get("output", "")
    if manifest.get("loss_space") == "logits" and not said:
        raise UserError(
            f"teacher '{name}': run '{fields['run']}' was fitted in logit space, where a softmax says almost nothing; "
            f"set config.teachers.{name}.output to 'clipped_logits' (its logits as probabilities) or 'softmax'."
        )
    return said or "softmax"


def check_classes(
    config, teachers: Mapping[str, Teacher], num_classes: int, class_names: tuple[str, ...] | None = None
) -> None:
    """Refuses a teacher of other classes where a loss or diagnostic reads its logits, and columns that it lacks.

    Args:
      config: resolved.
      teachers: by their names in it.
      num_classes, class_names: of the data. Names are compared where both sides have them and no columns are chosen.

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
    for (where, branches), names in _comparing(config, teachers).items():
        for name in names:
            own = config.teachers[name]
            if branches and (own.classes or own.temperature != 1):
                raise UserError(
                    f"{where} compares branches as they are: there teacher '{name}' can have no classes and no "
                    "temperature of its own."
                )
            difference = _other_classes(teachers[name], own.classes, num_classes, class_names)
            if difference:
                raise UserError(
                    f"{where} compares logits, and teacher '{name}' has {difference}; name a teacher that was trained "
                    f"on the same classes, or its columns of these classes in config.teachers.{name}.classes or "
                    "config.teacher_classes."
                )


def _other_classes(teacher: Teacher, columns: tuple, num_classes: int, class_names: tuple[str, ...] | None) -> str:
    """In what a teacher's classes differ from the data's, '' where they do not."""
    count = len(columns) or teacher.num_classes
    if count != num_classes:
        return f"{count} classes while the data has {num_classes}"
    if columns or not teacher.class_names or not class_names:  # columns were chosen by somebody who knows
        return ""
    pairs = enumerate(zip(teacher.class_names, class_names))
    differing = (f"{a!r} as class {i}, where the data has {b!r}" for i, (a, b) in pairs if a != b)
    return next(differing, "")


def _comparing(config, teachers: Mapping[str, Teacher]) -> dict[tuple[str, bool], list[str]]:
    """(Field of the config that compares logits, whether branches are meant) -> names of the teachers that it reads."""
    found = {}
    for key, term in config.losses.items():
        function = lookup(losses.LOSSES, term["loss"], "loss")
        if reads_teacher_logits(function):
            names = [term["teacher"]] if term["teacher"] else list(teachers)
            found[f"config.losses.{key}", reads_branches(function)] = names
    return found | ({("config.diagnostics", False): list(teachers)} if config.diagnostics else {})


def _rows_of(data: Mapping) -> str:
    """What decides which images a data set has, in a form in which a manifest and a config compare."""
    args = {name: value for name, value in data["args"].items() if name not in ("scale", "mean", "std")}
    return json.dumps([data["name"], args], sort_keys=True)


def check_splits(config, dataset: Dataset, teachers: Mapping[str, Teacher], data_dir: str) -> None:
    """Warns of, or refuses, held-out images or hidden labels that a teacher was trained on.

    Raises:
      UserError: there are such images and the student's best is chosen on them, or there are such labels.
    """
    for name, teacher in teachers.items():
        if teacher.data is None or _rows_of(teacher.data) != _rows_of(config.data.to_dict()):
            continue
        theirs = load_dataset(type(config.data)(teacher.data), data_dir)
        _check_labels(name, config, dataset, teacher, theirs)
        trained_on = theirs.splits["train"]
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


def _check_labels(name: str, config, dataset: Dataset, teacher: Teacher, theirs: Dataset) -> None:
    """Refuses a teacher that knows labels which a partly labelled student does not have."""
    partly = any(record["protocol"] == "labelled_fraction" for record in dataset.protocols)
    if not partly or teacher.labelled == split_hash(dataset.labelled_train) or config.teachers[name].more_labels:
        return
    extra = np.setdiff1d(theirs.labelled_train, dataset.labelled_train)
    if len(extra):
        raise UserError(
            f"teacher '{name}' was trained on {len(extra)} labels that the student does not have; train it with the "
            f"student's config.data, or allow it with --config.teachers.{name}.more_labels=True."
        )
