"""Teachers that are files of outputs: checked against the student's config and data, and read by row and visit."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from kdjax import losses
from kdjax.config import FITTED, order_seed
from kdjax.data import Dataset, resolve_view, split_hash
from kdjax.data.views import names as view_names
from kdjax.distillation.terms import find_loss
from kdjax.errors import UserError
from kdjax.interop.output_files import StoredOutputs, companion_of
from kdjax.training.identity import ByIdentity
from kdjax.training.spec import StoredSpec
from kdjax.training.teachers import Teacher
from kdjax.types import Config, TopK

RESIDENT = 1 << 28  # bytes of a file up to which the devices hold all outputs; of larger ones each batch brings its own


def stored_spec(outputs: StoredOutputs) -> StoredSpec:
    """Returns what of a file shapes the compiled step; it follows from the file alone, so that resuming is exact."""
    top = 0 if outputs.top is None else outputs.shape[-1]
    large = outputs.logits is not None and outputs.logits.nbytes > RESIDENT
    return StoredSpec(outputs.views, top, large)


def check_stored_teachers(config: Config, dataset: Dataset, teachers: Mapping[str, Teacher]) -> None:
    """Checks every teacher that is a file against the config and the data, and says once where views do not match.

    Args:
      config: Resolved config.
      dataset: Loaded data.
      teachers: Teachers by their names in the config.

    Raises:
      UserError: The file was made of other images, has other rows or classes, or the config reads more of it than it
        has.
    """
    for name, teacher in teachers.items():
        if teacher.outputs is None:
            continue
        where = f"teacher '{name}': {teacher.outputs.path}"
        _check_fields(config, name, teacher.outputs, where)
        _check_losses(config, name, teacher.outputs, dataset.num_classes, where)
        _check_data(teacher.outputs, dataset, where)
        if teacher.outputs.top is not None and teacher.outputs.top.indices.max() >= dataset.num_classes:
            largest = teacher.outputs.top.indices.max()
            raise UserError(f"{where} has class {largest}, and the data has {dataset.num_classes}, from 0.")
        _compare_views(config, name, teacher.outputs, dataset)


def _check_fields(config: Config, name: str, outputs: StoredOutputs, where: str) -> None:
    fields = config.teachers[name]
    if fields.temperature == FITTED:
        raise UserError(f"{where} has no outputs for validation images to fit a temperature on; write a number.")
    if config.teacher_batch_norm == "batch":
        raise UserError(f"{where} holds outputs, which no batch statistics change; leave config.teacher_batch_norm.")
    if outputs.top is None:
        return
    if fields.temperature != 1 or fields.classes or fields.output == "clipped_logits":
        raise UserError(
            f"{where} has top classes: they take no temperature, classes or output of their own; store all logits."
        )
    if len(config.teachers) > 1 and config.ensemble != "losses":
        raise UserError(f"{where} has top classes, of which no mean can be made; set config.ensemble to 'losses'.")
    if config.diagnostics:
        raise UserError(f"{where} has top classes, and config.diagnostics needs all; set config.diagnostics to False.")


def _check_losses(config: Config, name: str, outputs: StoredOutputs, num_classes: int, where: str) -> None:
    takes_top = [loss for loss, function in losses.LOSSES.items() if _takes_top(function)]
    for key, term in config.losses.items():
        loss = find_loss(term["loss"])
        if not loss.reads_teacher or term["teacher"] not in ("", name):
            continue
        if not loss.needs_logits_alone:
            raise UserError(
                f"config.losses.{key}: '{loss.name}' reads more than logits, and {where} has no more; name a run as "
                f"its teacher: config.losses.{key}.teacher."
            )
        if outputs.top is not None and loss.name in losses.LOSSES and loss.name not in takes_top:
            kinds = ", ".join(takes_top)
            raise UserError(
                f"config.losses.{key}: '{loss.name}' needs the teacher's logits of all classes, and {where} has the "
                f"top {outputs.shape[-1]}; store all, or take one of {kinds}."
            )

        # A temperature is traced in the step, where the loss could only be NaN.
        at_one = term.get("temperature", 1) == 1 or outputs.shape[-1] == num_classes
        if outputs.top is not None and term.get("mode") == "tail" and not at_one:
            raise UserError(
                f"config.losses.{key}.temperature is {term['temperature']:g}, and {where} has top classes, which say "
                "the mass of all others at temperature 1 alone; set it to 1, or the mode to 'renormalize' or 'zero'."
            )


def _takes_top(loss: Callable) -> bool:
    """Whether a loss says by the type of its teacher's logits that it takes the top classes of a teacher."""
    parameter = inspect.signature(loss).parameters.get("teacher_logits")
    return parameter is not None and TopK in typing.get_args(parameter.annotation)


def _check_data(outputs: StoredOutputs, dataset: Dataset, where: str) -> None:
    about, count = outputs.about, outputs.shape[0]
    made_of = about.get("data", {})
    other = [part for part, value in dataset.source_hashes.items() if made_of.get(part, value) != value]
    if other:
        raise UserError(f"{where} was computed from another data set: its {' and '.join(other)} differ; write it anew.")
    rows = rows_of_file(outputs, dataset)
    missing = np.setdiff1d(dataset.splits["train"], rows)
    if rows.size == 0 or len(missing):
        sizes = [f"{len(choice):,} ({words})" for words, choice in _choices(dataset).items()]
        lacks = f"lacks {len(missing)} of the training images" if rows.size else f"has {count:,} rows"
        raise UserError(
            f"{where} {lacks}; a file has a row for each of one of these, in the data set's order: {', '.join(sizes)}. "
            "python -m kdjax.predict --split=all writes all rows of a run, which serve any split."
        )
    if not about:
        _say_unchecked(where, companion_of(outputs.path).name)


def _choices(dataset: Dataset) -> dict[str, np.ndarray]:
    """Returns in words -> the rows of the data set that a file may have, in their order."""
    total = len(dataset.labels)
    found = {"the training split": dataset.splits["train"]}
    test = dataset.splits.get("test", np.zeros(0, np.int32))
    official = total - len(test)
    if len(test) and test.min() == official:  # the test rows are the last ones
        found["all images but the test split"] = np.arange(official)
    return {**found, "all images": np.arange(total)}


def rows_of_file(outputs: StoredOutputs, dataset: Dataset) -> np.ndarray:
    """Returns the row of the data set that each row of a file belongs to; empty where they cannot be told."""
    said = outputs.about.get("rows", {})
    for rows in (*_choices(dataset).values(), *dataset.splits.values()):
        if len(rows) == outputs.shape[0] and said.get("sha256", split_hash(rows)) == split_hash(rows):
            return np.asarray(rows)
    return np.zeros(0, np.int32)


@functools.lru_cache(maxsize=64)  # once for a file, also where many runs learn from it
def _say_unchecked(where: str, companion: str) -> None:
    logging.warning(
        "%s has no companion %s: only the number of its rows is checked, not that they belong to these images.",
        *(where, companion),
    )


def _compare_views(config: Config, name: str, outputs: StoredOutputs, dataset: Dataset) -> None:
    own = config.data.view
    wanted = resolve_view(dataset, config.teachers[name].view or config.data.teacher_view or own)
    parsed = view_names.parse(wanted)
    if view_names.parse(resolve_view(dataset, own)).mix:
        raise UserError(
            f"teacher '{name}': config.data.view mixes examples, for which {outputs.path} has no outputs; choose "
            "another view, or a run as teacher."
        )
    stored, seed = outputs.about.get("view", "none"), outputs.about.get("seed", 0)
    epochs = config.warmup.epochs + config.epochs
    fixed = parsed == view_names.View()
    if fixed and view_names.parse(stored) == view_names.View():
        return
    if stored == wanted and seed == order_seed(config) and outputs.views >= epochs:
        return
    seen = f"view '{stored}'" + (f", {outputs.views} draws of seed {seed}" if stored != "none" else "")
    _say_views(name, outputs.path, seen, wanted)


@functools.lru_cache(maxsize=64)  # once for a file
def _say_views(name: str, path: str, seen: str, wanted: str) -> None:
    logging.warning(
        "teacher '%s': %s has outputs for %s, while a teacher in the step would see view '%s', in each epoch a new "
        "draw of the run's own seed: the outputs are used as they are.",
        *(name, path, seen, wanted),
    )


def resident_outputs(outputs: StoredOutputs, dataset: Dataset) -> np.ndarray | TopK:
    """Returns the outputs in the places of the data set's rows, leaves [rows of the data set, ...]; others are 0."""
    rows = rows_of_file(outputs, dataset).astype(np.int64)
    return _resident(ByIdentity(outputs), rows.tobytes(), len(dataset.labels))


@functools.lru_cache(maxsize=16)  # students of one process that share a file share its arrays
def _resident(outputs: ByIdentity, rows: bytes, size: int) -> np.ndarray | TopK:
    stored, index = outputs.value, np.frombuffer(rows, np.int64)
    leaves = [stored.logits] if stored.top is None else list(stored.top)
    found = []
    for leaf in leaves:
        whole = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
        whole[index] = leaf
        found.append(whole)
    return found[0] if stored.top is None else TopK(*found)


class OutputReader:
    """Reads the outputs of examples from a large file when a batch needs them."""

    def __init__(self, outputs: StoredOutputs, dataset: Dataset):
        self._logits, self._views = outputs.logits, outputs.views
        self._place = np.zeros(len(dataset.labels), np.int64)
        self._place[rows_of_file(outputs, dataset)] = np.arange(outputs.shape[0])

    def read(self, index: np.ndarray, visit: np.ndarray) -> np.ndarray:
        """Returns the logits [..., classes] of rows of the data set [...] at visits [...]."""
        assert self._logits is not None
        rows = self._place[index]
        return np.asarray(self._logits[rows, visit % self._views] if self._views else self._logits[rows])
