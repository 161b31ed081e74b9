"""Reads parameters that flax programs saved elsewhere: orbax folders or msgpack files of linen variables or nnx state.

Names and shapes are looked at first. Only the leaves that the network has are read, once they have its shapes.
"""

import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from kdjax.bounded import open_regular
from kdjax.errors import UserError
from kdjax.models.initialize import variable_shapes
from kdjax.store.files import first_line

METADATA = "_METADATA"  # the file that makes a folder an item of orbax
VALUE = "value"  # the last level of a leaf of nnx state
RANDOM = ("count", "key")  # leaves of nnx's random streams, which no stored network has

Path = tuple[str, ...]


class FlaxCheckpoint(NamedTuple):
    """A checkpoint, opened.

    Attributes:
      shapes: Path of each leaf -> its shape.
      read: Function of paths that returns path -> array.
    """

    shapes: dict[Path, tuple[int, ...]]
    read: Callable[[Iterable[Path]], dict[Path, np.ndarray]]


def open_checkpoint(path: str) -> FlaxCheckpoint:
    """Opens a checkpoint; of an orbax folder nothing but names and shapes is read yet.

    Args:
      path: A folder that orbax wrote: one item, several of one step, or the steps of a CheckpointManager, of which the
        last is taken. Or a file of flax.serialization (msgpack).

    Raises:
      UserError: It does not exist, or is damaged or something else.
    """
    if os.path.isdir(path):
        return _open_orbax(pathlib.Path(path).absolute())
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    try:
        found = serialization.msgpack_restore(content)
        leaves = {_names(key): leaf for key, leaf in traverse_util.flatten_dict({"": found}).items()}
    except Exception as error:  # msgpack and NumPy raise many types for a damaged file
        raise UserError(
            f"{path} is neither an orbax folder nor a msgpack file of flax.serialization ({first_line(error)})."
        ) from error
    arrays = {key: np.asarray(leaf) for key, leaf in leaves.items() if hasattr(leaf, "shape")}
    return FlaxCheckpoint(
        {key: array.shape for key, array in arrays.items()}, lambda keys: {key: arrays[key] for key in keys}
    )


def _names(path: tuple) -> Path:
    return tuple(str(part) for part in path if part != "")


def _open_orbax(folder: pathlib.Path) -> FlaxCheckpoint:
    items = _items(folder)
    shapes: dict[Path, tuple[int, ...]] = {}
    for name, item in items.items():
        shapes |= {(*name, *key): shape for key, shape in _shapes_of(item).items()}

    def read(keys: Iterable[Path]) -> dict[Path, np.ndarray]:
        keys, found = list(keys), {}
        for name, item in items.items():
            own = [key[len(name) :] for key in keys if key[: len(name)] == name]
            found |= {(*name, *key): leaf for key, leaf in _read_item(item, own).items()} if own else {}
        return found

    return FlaxCheckpoint(shapes, read)


def _items(folder: pathlib.Path) -> dict[Path, pathlib.Path]:
    """Returns name -> folder of each item: of the folder itself, of its items, or of its last step."""
    if (folder / METADATA).is_file():
        return {(): folder}
    inner = sorted(one for one in folder.iterdir() if one.is_dir())
    if items := {(one.name,): one for one in inner if (one / METADATA).is_file()}:
        return items
    steps = {int(end): one for one in inner if (end := one.name.rpartition("_")[2]).isdecimal()}
    if steps:
        return _items(steps[max(steps)])
    listed = ", ".join(one.name for one in inner[:8]) or "no folder"
    raise UserError(f"{folder} has no checkpoint of orbax: neither {METADATA} nor steps, but {listed}.")


def _shapes_of(item: pathlib.Path) -> dict[Path, tuple[int, ...]]:
    try:
        with ocp.PyTreeCheckpointer() as reader:
            found = reader.metadata(item)
        tree: Any = getattr(found, "item_metadata", found)
        tree = getattr(tree, "tree", tree)
        leaves = {
            _names(key): leaf for key, leaf in traverse_util.flatten_dict(serialization.to_state_dict(tree)).items()
        }
    except Exception as error:  # orbax raises plain exceptions with pages of text
        raise UserError(f"{item} cannot be read as a checkpoint of orbax ({first_line(error)}).") from error
    arrays = {key: leaf for key, leaf in leaves.items() if getattr(leaf, "shape", None) is not None}
    for key, leaf in arrays.items():
        chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None)
        if chunk and math.prod(chunk) > max(1, math.prod(leaf.shape)):
            raise UserError(f"{item} is damaged: '{'/'.join(key)}' {leaf.shape} is stored in chunks of {tuple(chunk)}.")
    return {key: tuple(leaf.shape) for key, leaf in arrays.items()}


def _read_item(item: pathlib.Path, keys: list[Path]) -> dict[Path, np.ndarray]:
    wanted = traverse_util.unflatten_dict(dict.fromkeys(keys, np.zeros(())))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            leaves = traverse_util.flatten_dict(reader.restore(item, args=args))
    except Exception as error:
        raise UserError(f"{item} is damaged: {first_line(error)}.") from error
    return {key: np.asarray(leaves[key]) for key in keys}


def read_variables(checkpoint: FlaxCheckpoint, module: nn.Module, input_shape: tuple[int, ...], where: str) -> dict:
    """Returns a network's variables from a checkpoint of linen variables, of parameters alone, or of nnx state.

    Args:
      checkpoint: What `open_checkpoint` returned.
      module: The network.
      input_shape: Shape of a batch of images, batch axis included.
      where: The checkpoint's path, for messages.

    Returns:
      {'params': ..., 'batch_stats': ...} of NumPy arrays of float32 (float64 with jax_enable_x64).

    Raises:
      UserError: Leaves are missing, left over, of another shape or not finite; the message has their names.
    """
    shapes = traverse_util.flatten_dict(variable_shapes(module, input_shape))
    wanted = {_names(key): tuple(leaf.shape) for key, leaf in shapes.items()}
    found = max(_readings(checkpoint.shapes), key=lambda reading: _fit(reading, wanted))
    _check(found, wanted, checkpoint.shapes, where, type(module).__name__)
    arrays = checkpoint.read(found[key] for key in wanted)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    variables = {key: arrays[found[key]].astype(dtype) for key in wanted}
    bad = ["/".join(key) for key, leaf in variables.items() if not np.isfinite(leaf).all()]
    if bad:
        raise UserError(f"{where} has numbers that are not finite in {_listed(bad)}.")
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(variables)


def _fit(reading: Mapping[Path, Path], wanted: Mapping[Path, tuple]) -> tuple[int, int]:
    return len(reading.keys() & wanted.keys()), -len(reading.keys() - wanted.keys())


def _readings(shapes: Mapping[Path, tuple]) -> Iterable[dict[Path, Path]]:
    """Yields the ways in which a checkpoint can be read: (collection, *path) -> path of the leaf in it."""
    plain = {key[:-1] if key[-1:] == (VALUE,) else key: key for key in shapes}
    roots = dict.fromkeys(key[:depth] for key in plain for depth in range(min(len(key), 4)))  # '' first
    for root in roots:
        own = {
            key[len(root) :]: path for key, path in plain.items() if key[: len(root)] == root and len(key) > len(root)
        }
        yield {key: path for key, path in own.items() if key[0] in ("params", "batch_stats")}
        streams = {key[:-1] for key in own if key[-1] == "key"}
        stored = {key: path for key, path in own.items() if key[-1] not in RANDOM or key[:-1] not in streams}
        yield {("params", *key): path for key, path in stored.items()}
        yield {("batch_stats" if key[-1] in ("mean", "var") else "params", *key): path for key, path in stored.items()}


def _check(
    found: Mapping[Path, Path], wanted: Mapping[Path, tuple], shapes: Mapping[Path, tuple], where: str, name: str
) -> None:
    missing = ["/".join(key) for key in wanted if key not in found]
    surplus = ["/".join(path) for key, path in found.items() if key not in wanted]
    misshapen = [
        f"{'/'.join(key)} {shapes[found[key]]} instead of {shape}"
        for key, shape in wanted.items()
        if key in found and shapes[found[key]] != shape
    ]
    problems = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    told = [f"{what}: {_listed(entries)}" for what, entries in problems.items() if entries]
    if told:
        raise UserError(f"{where} does not fit {name}; {'; '.join(told)}.")


def _listed(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
