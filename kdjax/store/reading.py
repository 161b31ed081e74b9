"""Reads one checkpoint, and checks that nothing in it is missing or changed."""

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.store import tree
from kdjax.store.files import first_line, plain

STATE, PROGRESS = "state", "progress"  # the two items of a checkpoint

T = TypeVar("T")


class Damaged(Exception):
    """A checkpoint is damaged; the text is one line that says why."""


def make_record(leaves: tree.Leaves, progress: Mapping) -> dict:
    """Returns the record that is stored beside the leaves of a checkpoint.

    Args:
      leaves: Path -> NumPy array.
      progress: The caller's own mapping.

    Returns:
      {'leaves': name -> [shape, dtype, crc32], 'progress': ..., 'crc': checksum of the two}.
    """
    marks = {tree.name(path): tree.fingerprint(leaf) for path, leaf in leaves.items()}
    record = {"leaves": marks, "progress": plain(progress, finite=False)}
    return {**record, "crc": _crc(record)}


def _crc(record: Mapping) -> int:
    return zlib.crc32(json.dumps({part: record[part] for part in ("leaves", "progress")}, sort_keys=True).encode())


def read_record(folder: pathlib.Path) -> dict:
    """Returns the record that `make_record` made for the checkpoint in a folder.

    Raises:
      Damaged: The record is missing, truncated or changed.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            record = reader.restore(folder.absolute() / PROGRESS)
        intact = record["crc"] == _crc(record)
    except Exception as error:
        raise Damaged(f"its progress cannot be read ({first_line(error)})") from error
    if not intact:
        raise Damaged("its progress does not match its checksum")
    return record


def read_leaves(folder: pathlib.Path, table: Mapping[str, list]) -> tree.Leaves:
    """Reads leaves of a checkpoint.

    Args:
      folder: Folder of the checkpoint.
      table: Name -> [shape, dtype, crc32] of the leaves to read, which may be a part of all leaves.

    Returns:
      Path -> NumPy array.

    Raises:
      Damaged: A leaf is missing, unreadable or changed.
    """
    paths = {leaf: tree.path(leaf) for leaf, (shape, _, _) in table.items() if 0 not in shape}
    empty = {tree.path(leaf): np.zeros(shape, dtype) for leaf, (shape, dtype, _) in table.items() if 0 in shape}
    if not paths:
        return empty
    item = traverse_util.unflatten_dict(dict.fromkeys(paths.values(), np.zeros(())))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            leaves = traverse_util.flatten_dict(reader.restore(folder.absolute() / STATE, args=args))
    except Exception as error:  # orbax raises plain Exceptions with pages of text
        raise Damaged(_blame(error, table)) from error
    for leaf, path in paths.items():
        # orbax returns a ShapeDtypeStruct for a missing leaf, and another number for a flipped bit, without an error.
        value = leaves.get(path)
        if not isinstance(value, np.ndarray) or tree.fingerprint(value) != table[leaf]:
            raise Damaged(f"leaf '{leaf}' does not match its checksum")
    return {**leaves, **empty}


def _blame(error: Exception, table: Iterable[str]) -> str:
    """Returns an error's text, preceded by the leaf that it is about if it names one."""
    text = str(error)
    named = [leaf for leaf in table if leaf in text or leaf.replace("/", ".") in text]
    return (f"leaf '{max(named, key=len)}': " if named else "") + first_line(error)


def first_good(folder: pathlib.Path, steps: list[int], load: Callable[[pathlib.Path], T]) -> tuple[T, int]:
    """Loads the first checkpoint that is not damaged, and logs a warning for each damaged one before it.

    Args:
      folder: Folder of the checkpoints.
      steps: Steps to try, in this order.
      load: Function that reads the folder of a step, or raises Damaged.

    Returns:
      (what `load` returned, step).

    Raises:
      UserError: All are damaged.
    """
    for step, following in zip(steps, [*steps[1:], None]):
        path = folder / str(step)
        try:
            return load(path), step
        except Damaged as error:
            if following is None:
                raise UserError(
                    f"Checkpoint {path} is damaged: {error}; choose another checkpoint, "
                    f"or delete {folder.parent} and train the run again."
                ) from error
            logging.warning("Checkpoint %s is damaged: %s; trying step %d instead.", path, error, following)
    raise ValueError("No steps to try.")
