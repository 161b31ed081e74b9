"""Writes a state dict as `torch.save` does, without torch: a zip archive of a pickle and the tensors' bytes."""

import io
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from kdjax.interop import torch_objects

ROOT = "archive"  # the folder in the zip; any name will do
STORAGES = {np.dtype(dtype): name for name, dtype in torch_objects.STORAGES.items()}
# Opcodes of the pickle protocol 2, which `torch.load(weights_only=True)` reads.
START, STOP = b"\x80\x02", b"."
DICT, MARK, SET_ITEMS = b"}", b"(", b"u"
TUPLE, EMPTY_TUPLE, CALL, FALSE, STORAGE_OF = b"t", b")", b"R", b"\x89", b"Q"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
NO_HOOKS = b"ccollections\nOrderedDict\n" + EMPTY_TUPLE + CALL


def make_torch_archive(arrays: Mapping[str, np.ndarray]) -> memoryview:
    """Returns the bytes of a file that `torch.load(weights_only=True)` reads as a dict of tensors.

    Args:
      arrays: Name -> array, little-endian and in C order, of a type of STORAGES. Its order is kept.

    Raises:
      KeyError: A type is not one of STORAGES.
    """
    items = b"".join(_text(name) + _tensor(str(i), array) for i, (name, array) in enumerate(arrays.items()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # uncompressed, and always dated 1980
        _write(archive, "data.pkl", START + DICT + MARK + items + SET_ITEMS + STOP)
        _write(archive, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _write(archive, f"data/{i}", array.tobytes())
        _write(archive, "version", b"3\n")
    return buffer.getbuffer()


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), content)


def _tensor(key: str, array: np.ndarray) -> bytes:
    """Returns the opcodes that rebuild a tensor: storage, offset, shape, strides, whether it has a gradient, hooks."""
    kind = f"ctorch\n{STORAGES[array.dtype]}\n".encode()
    storage = MARK + _text("storage") + kind + _text(key) + _text("cpu") + _integer(array.size) + TUPLE + STORAGE_OF
    strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
    arguments = storage + _integer(0) + _integers(array.shape) + _integers(strides) + FALSE + NO_HOOKS
    return REBUILD + MARK + arguments + TUPLE + CALL


def _integers(values: Iterable[int]) -> bytes:
    return MARK + b"".join(map(_integer, values)) + TUPLE


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x08" + value.to_bytes(8, "little")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded
