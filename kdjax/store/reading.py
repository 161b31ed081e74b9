"""Reading one checkpoint: what it holds, whether it is whole, and in one line why not."""

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.store import tree
from kdjax.store.files import first_line, plain

STATE, PROGRESS = "state", "progress"  # the two items of a checkpoint


class Damaged(Exception):
    """A checkpoint that cannot be read; one line why."""


def make_record(leaves: tree.Leaves, progress: Mapping) -> dict:
    """Returns what lies beside the leaves: {'leaves': name -> [shape, dtype, crc32], 'progress', 'crc': of both}."""
    marks = {tree.name(path): tree.fingerprint(leaf) for path, leaf in leaves.items()}
    record = {"leaves": marks, "progress": plain(progress, finite=False)}
    return {**record, "crc": _crc(record)}


def _crc(record: Mapping) -> int:
    return zlib.crc32(json.dumps({part: record[part] for part in ("leaves", "progress")}, sort_keys=True).encode())


def read_record(folder: pathlib.Path) -> dict:
    """Returns what `make_record` made.

    Raises:
      Damaged: it is missing, cut short or changed.
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
    """Returns path -> NumPy array for the leaves of `table`, which may be a part of what the checkpoint holds.

    Raises:
      Damaged: a leaf is missing, unreadable or changed.
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
    except Exception as error:  # orbax raises bare Exceptions with pages of dump
        raise Damaged(_blame(error, table)) from error
    for leaf, path in paths.items():
        # A missing leaf comes back as a ShapeDtypeStruct without a word, a flipped bit as another number.
        if not isinstance(leaves.get(path), np.ndarray) or tree.fingerprint(leaves[path]) != table[leaf]:
            raise Damaged(f"leaf '{leaf}' does not match its checksum")
    return {**leaves, **empty}


def _blame(error: Exception, table: Iterable[str]) -> str:
    text = str(error)
    named = [leaf for leaf in table if leaf in text or leaf.replace("/", ".") in text]
    return (f"leaf '{max(named, key=len)}': " if named else "") + first_line(error)


def first_good(folder: pathlib.Path, steps: list[int], load: Callable[[pathlib.Path], Any]) -> tuple[Any, int]:
    """Returns (load(folder of the step), step) for the first of `steps` that is whole; warns of those before it.

    Raises:
      UserError: all are damaged.
    """
    for step, following in zip(steps, [*steps[1:], None]):
        path = folder / str(step)
        try:
            return load(path), step
        except Damaged as error:
            if following is None:
                raise UserError(
                    f"Checkpoint {path} is damaged: {error}; ask for another checkpoint, "
                    f"or delete {folder.parent} and train the run anew."
                ) from error
            logging.warning("Checkpoint %s is damaged: %s; trying step %d instead.", path, error, following)
    raise ValueError("No steps to try.")
