"""Packed checkpoints: one safetensors file each, in which every leaf has a checksum.

orbax, which writes the checkpoints of a run in progress, makes at least ten files and takes 50 milliseconds for a
network of any size, whatever its options are. A finished small run is stored in this form instead.

Each leaf is a tensor of the file, under its path joined by '/'. The file's metadata has one entry, 'kdjax', with JSON:
'crc32' (one number for every leaf, in the order of the sorted names), 'dtypes' (the dtypes of leaves that NumPy itself
lacks; such a leaf is stored as bytes, with one axis more), 'progress', and 'record', the checksum of all names, shapes,
dtypes, checksums and the progress.
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from kdjax.store import tree
from kdjax.store.files import first_line, write_atomic
from kdjax.store.record import as_damage, check_leaves, check_record, make_record

SUFFIX = ".safetensors"
_ENTRY = "kdjax"
_DTYPES = {
    "BOOL": "bool",
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}  # safetensors' codes of the dtypes that NumPy itself has


def write_checkpoint(path: pathlib.Path, leaves: tree.Leaves, progress: Mapping) -> None:
    """Writes a packed checkpoint atomically.

    Args:
      path: Path of the file. Its folder is made if necessary.
      leaves: Path -> NumPy array of any dtype, those of ml_dtypes included.
      progress: Mapping that JSON can represent; floats are restored exactly.

    Raises:
      UserError: The file cannot be written.
    """
    record = make_record(leaves, progress)
    table = record["leaves"]
    entry = {
        "crc32": [table[name][2] for name in sorted(table)],
        "dtypes": {name: dtype for name, (_, dtype, _) in table.items() if dtype not in _DTYPES.values()},
        "progress": record["progress"],
        "record": record["crc"],
    }
    tensors = {tree.name(place): _tensor(leaf) for place, leaf in leaves.items()}
    # save_file would be faster, but safetensors 0.8 makes files that only their owner can read, and a killed process
    # leaves temporary files of arbitrary names.
    write_atomic(path, save(tensors, {_ENTRY: json.dumps(entry, separators=(",", ":"))}))


def _tensor(leaf: np.ndarray) -> np.ndarray:
    """Returns the array that is stored for a leaf: contiguous, since safetensors copies memory and ignores strides."""
    leaf = np.asarray(leaf, order="C")
    if leaf.dtype.name in _DTYPES.values():
        return leaf
    return leaf.reshape(-1).view(np.uint8).reshape(*leaf.shape, leaf.dtype.itemsize)


def read_record(path: pathlib.Path) -> dict:
    """Returns the record of a packed checkpoint, as `kdjax.store.record.make_record` made it.

    Raises:
      Damaged: The file is missing, truncated, or its header is changed.
    """
    try:
        with safe_open(path, framework="np") as file:
            entry = json.loads(file.metadata()[_ENTRY])
            marks = {name: _describe(file.get_slice(name), entry["dtypes"].get(name)) for name in sorted(file.keys())}
        leaves = {name: [*mark, crc] for (name, mark), crc in zip(marks.items(), entry["crc32"], strict=True)}
        record = {"leaves": leaves, "progress": entry["progress"], "crc": entry["record"]}
    except Exception as error:  # changed bytes can make any entry missing or of another type
        raise as_damage(path, error, f"its header cannot be read ({first_line(error)})") from error
    check_record(record, "its header")
    return record


def _describe(tensor, dtype: str | None) -> list:
    """Returns [shape, dtype] of a leaf; `dtype` is the one of a leaf that is stored as bytes, None for other leaves."""
    shape = list(tensor.get_shape())
    return [shape, _DTYPES[tensor.get_dtype()]] if dtype is None else [shape[:-1], dtype]


def read_leaves(path: pathlib.Path, table: Mapping[str, list]) -> dict[str, np.ndarray]:
    """Reads leaves of a packed checkpoint, and checks the checksum of each.

    Args:
      path: Path of the file.
      table: Name -> [shape, dtype, crc32] of the leaves to read, which may be a part of all leaves.

    Returns:
      Name -> array with memory of its own.

    Raises:
      Damaged: A leaf is missing, unreadable or changed.
    """
    try:
        with safe_open(path, framework="np") as file:
            leaves = {name: _leaf(file.get_tensor(name), *mark[:2]) for name, mark in table.items()}
    except Exception as error:
        raise as_damage(path, error, first_line(error)) from error
    check_leaves(leaves, table)
    return leaves


def _leaf(tensor: np.ndarray, shape: list[int], dtype: str) -> np.ndarray:
    return tensor if dtype in _DTYPES.values() else tensor.reshape(-1).view(np.dtype(dtype)).reshape(shape)
