"""Turns a pytree into a table of named leaves, and a table of leaves into a pytree."""

import zlib
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from kdjax.errors import UserError

Leaves = dict[tuple[str, ...], Any]


def flatten(tree: Any) -> Leaves:
    """Returns path -> leaf. Structs and tuples become levels with string keys; empty nodes and None are left out."""
    nodes = traverse_util.flatten_dict(serialization.to_state_dict(tree))
    return {path: leaf for path, leaf in nodes.items() if leaf is not None}


def host_copy(tree: Any) -> Leaves:
    """Returns path -> NumPy array with memory of its own, so that the caller may donate or overwrite its buffers.

    The copy is necessary, since a NumPy view of a jax array on CPU shares its buffer.
    """
    return {path: np.array(leaf, copy=True) for path, leaf in jax.device_get(flatten(tree)).items()}


def describe(leaf: Any) -> list:
    """Returns [shape, dtype] of an array, a ShapeDtypeStruct or a Python number, with the types of JSON."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return [list(leaf.shape), np.dtype(leaf.dtype).name]


def fingerprint(leaf: np.ndarray) -> list:
    """Returns [shape, dtype, crc32 of the bytes]; orbax itself does not notice a flipped bit in its data files."""
    return [*describe(leaf), zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)]


def name(path: tuple[str, ...]) -> str:
    """Returns the name of a leaf in messages and tables."""
    return "/".join(path)


def path(name: str) -> tuple[str, ...]:
    """Returns the path of the leaf that has this name."""
    return tuple(name.split("/"))


def check_same(like: Leaves, table: dict[str, list], where: str) -> None:
    """Refuses a checkpoint whose leaves are not those of `like`.

    Args:
      like: Path -> array or ShapeDtypeStruct, the leaves that the program has.
      table: Name -> [shape, dtype, crc32], the leaves that the checkpoint has.
      where: Name of the checkpoint, for the message.

    Raises:
      UserError: A leaf is missing, unexpected or of another shape or dtype; the message has the first one.
    """
    wanted = {name(path): describe(leaf) for path, leaf in like.items()}
    advice = "it was written by another model or optimizer; choose another --run"
    if missing := sorted(wanted.keys() - table.keys()):
        raise UserError(f"{where} lacks the leaf '{missing[0]}'{_more(missing)}; {advice}.")
    if surplus := sorted(table.keys() - wanted.keys()):
        raise UserError(f"{where} has the unexpected leaf '{surplus[0]}'{_more(surplus)}; {advice}.")
    for leaf, (shape, dtype) in wanted.items():
        if table[leaf][:2] != [shape, dtype]:
            found = f"{table[leaf][1]}{table[leaf][0]}"
            raise UserError(f"{where}: leaf '{leaf}' is {found} and should be {dtype}{shape}; {advice}.")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def rebuild(like: Any, leaves: Leaves) -> Any:
    """Returns the structure of `like` with `leaves` in it; its empty nodes and None stay as they are."""
    nodes = traverse_util.flatten_dict(serialization.to_state_dict(like), keep_empty_nodes=True)
    return serialization.from_state_dict(like, traverse_util.unflatten_dict({**nodes, **leaves}))
