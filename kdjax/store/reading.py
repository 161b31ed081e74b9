"""Finds the checkpoints of a run, reads one, and checks that nothing in it is missing or changed."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.store import packed, tree
from kdjax.store.files import disk_errors, first_line
from kdjax.store.record import Damaged, as_damage, check_leaves, check_record

STATE, PROGRESS = "state", "progress"  # the two items of a checkpoint that orbax wrote
VARIABLES_ONLY = ".variables" + packed.SUFFIX  # end of the name of a packed checkpoint without optimizer state

T = TypeVar("T")

# Of several processes that train one run, the first alone reads and writes its store; orbax must not wait for the
# others.
ONE_PROCESS = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="kdjax")


class Found(NamedTuple):
    """A checkpoint on disk. Later ones and whole ones are greater, so that sorting puts the preferred one last.

    Attributes:
      whole: Whether it has the whole state; if not, it has only the network's variables.
      step: Number of updates made.
      packed: Whether it is a safetensors file; if not, it is a folder that orbax wrote.
      path: Path of the file or folder.
    """

    whole: bool
    step: int
    packed: bool
    path: pathlib.Path


def find_checkpoints(folder: pathlib.Path) -> list[Found]:
    """Returns the checkpoints in a folder that can be used, sorted.

    Variables without the rest of the state belong to a run that finished at a later step. If there is no later
    checkpoint, a process was killed while it finished the run; then they are not returned.

    Raises:
      UserError: The folder cannot be read.
    """
    found = list_checkpoints(folder)
    last = max((one.step for one in found if one.whole), default=-1)
    return [one for one in found if one.whole or one.step < last]


def list_checkpoints(folder: pathlib.Path) -> list[Found]:
    """Returns all completely written checkpoints in a folder, sorted.

    Raises:
      UserError: The folder cannot be read.
    """
    with disk_errors(folder, "read"):
        return sorted(one for path in folder.iterdir() if (one := _entry(path))) if folder.is_dir() else []


def _entry(path: pathlib.Path) -> Found | None:
    step, dot, ending = path.name.partition(".")
    if not step.isdecimal() or dot + ending not in ("", packed.SUFFIX, VARIABLES_ONLY):
        return None
    return Found(dot + ending != VARIABLES_ONLY, int(step), bool(dot), path)


def read_record(path: pathlib.Path) -> dict:
    """Returns the record of a checkpoint, as `kdjax.store.record.make_record` made it.

    Args:
      path: Path of a packed checkpoint, or folder that orbax wrote.

    Raises:
      Damaged: The record is missing, truncated or changed.
    """
    if path.suffix == packed.SUFFIX:
        return packed.read_record(path)
    try:
        handler = ocp.JsonCheckpointHandler(multiprocessing_options=ONE_PROCESS)
        with ocp.Checkpointer(handler, multiprocessing_options=ONE_PROCESS) as reader:
            record = reader.restore(path.absolute() / PROGRESS)
        check_record(record, "its progress")
    except Damaged:
        raise
    except Exception as error:
        raise as_damage(path, error, f"its progress cannot be read ({first_line(error)})") from error
    return record


def read_leaves(path: pathlib.Path, table: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Reads leaves of a checkpoint, and checks the checksum of each.

    Args:
      path: Path of a packed checkpoint, or folder that orbax wrote.
      table: Name -> [shape, dtype, crc32] of the leaves to read, which may be a part of all leaves.

    Returns:
      Name -> array.

    Raises:
      Damaged: A leaf is missing, unreadable or changed.
    """
    if path.suffix == packed.SUFFIX:
        return packed.read_leaves(path, table)
    leaves = {name: np.zeros(shape, dtype) for name, (shape, dtype, _) in table.items() if 0 in shape}
    leaves |= _read_filled(path, {name: mark for name, mark in table.items() if name not in leaves})
    check_leaves(leaves, table)
    return leaves


def _read_filled(folder: pathlib.Path, table: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Reads leaves that are not empty, which orbax stores."""
    paths = {name: tree.path(name) for name in table}
    if not paths:
        return {}
    item = traverse_util.unflatten_dict(dict.fromkeys(paths.values(), np.zeros(())))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=ONE_PROCESS)
        with ocp.Checkpointer(handler, multiprocessing_options=ONE_PROCESS) as reader:
            leaves = traverse_util.flatten_dict(reader.restore(folder.absolute() / STATE, args=args))
    except Exception as error:  # orbax raises plain Exceptions with pages of text
        raise as_damage(folder, error, _blame(error, table)) from error
    # orbax returns a ShapeDtypeStruct for a missing leaf, without an error.
    return {name: leaf for name, path in paths.items() if isinstance(leaf := leaves.get(path), np.ndarray)}


def _blame(error: Exception, table: Iterable[str]) -> str:
    """Returns an error's text, preceded by the leaf that it is about if it names one."""
    text = str(error)
    named = [leaf for leaf in table if leaf in text or leaf.replace("/", ".") in text]
    return (f"leaf '{max(named, key=len)}': " if named else "") + first_line(error)


def first_good(candidates: list[Found], load: Callable[[pathlib.Path], T]) -> tuple[T, int]:
    """Loads the first checkpoint that is not damaged, and logs a warning for each damaged one before it.

    Args:
      candidates: Checkpoints to try, in this order.
      load: Function that reads the checkpoint at a path, or raises Damaged.

    Returns:
      (what `load` returned, step).

    Raises:
      UserError: All are damaged.
    """
    for candidate, following in zip(candidates, [*candidates[1:], None]):
        path = candidate.path
        try:
            return load(path), candidate.step
        except Damaged as error:
            if following is None:
                raise UserError(
                    f"Checkpoint {path} is damaged: {error}; choose another checkpoint, "
                    f"or delete {path.parent.parent} and train the run again."
                ) from error
            logging.warning("Checkpoint %s is damaged: %s; trying step %d instead.", path, error, following.step)
    raise ValueError("No checkpoints to try.")
