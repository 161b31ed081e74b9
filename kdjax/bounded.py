"""Reads files that others made without allocating what they only claim to hold, and opens nothing but regular files."""

import errno
import io
import math
import os
import pathlib
import pickle
import re
import stat
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from kdjax.errors import UserError

RATIO = 64  # unpacked bytes for each byte of a file, where nothing else says how many there are
SPARE = 1 << 24  # unpacked bytes that any file may have besides
CHUNK = 1 << 20  # bytes that are read at once


class TooLarge(ValueError):
    """A file unpacks to more than it may."""


def allowance(size: int) -> int:
    """Returns how many bytes a file of `size` bytes may unpack to."""
    return RATIO * size + SPARE


def open_regular(path: os.PathLike | str) -> BinaryIO:
    """Opens a regular file for reading; a pipe, a socket or a device is refused, which could block or never end.

    Raises:
      OSError: There is no such file, or it may not be read.
      UserError: It is no regular file.
    """
    _refuse_irregular(path, os.stat(path).st_mode)  # opening a pipe or a device can already do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_irregular(path: os.PathLike | str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a regular file but a pipe, a socket or a device; name a file.")


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Returns the content of a member of a zip file.

    Raises:
      TooLarge: It has more than `most` bytes, whatever its header says.
    """
    with archive.open(name) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise TooLarge(f"'{name}' unpacks to more than {most:,} bytes")
    return content


def parse_npy(file: Any, most: int) -> np.ndarray:
    """Reads an array of numbers or texts, and no more memory than its bytes take.

    Args:
      file: File that is open at the beginning of the array.
      most: Bytes that it may take.

    Raises:
      TooLarge: The array takes more.
      ValueError: It is damaged, or holds something else.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"an array of version {version}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"Object arrays cannot be loaded: an array of {dtype}, which is not a type of numbers")
    if dtype.kind not in "biufcSU":
        raise ValueError(f"an array of {dtype}, which is not a type of numbers")
    if min([0, *shape]) < 0:
        raise ValueError(f"an array of the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise TooLarge(f"it unpacks to an array of {size:,} bytes, more than {most:,}")
    array = np.empty(size, np.uint8)  # the system gives memory only to what is written
    filled, view = 0, memoryview(array)
    while filled < size and (count := file.readinto(view[filled : filled + CHUNK])):
        filled += count
    if filled < size:
        raise ValueError(f"an array of {size:,} bytes of which {filled:,} are there")
    array = array.view(dtype) if size else np.zeros(0, dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def read_array(path: os.PathLike | str) -> np.ndarray:
    """Reads an .npy file; see `read_npz` for what is raised."""
    with open_regular(path) as file:
        return parse_npy(file, os.fstat(file.fileno()).st_size)


def read_npz(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file.

    Raises:
      OSError, UserError: The file cannot be read, or it is no regular file.
      TooLarge: The arrays take more than `allowance` of the file's size.
      ValueError: The file is damaged, or holds something else.
    """
    with open_regular(path) as file:
        try:
            return _unpacked(file, allowance(os.fstat(file.fileno()).st_size))
        except (OSError, ValueError):
            raise
        except Exception as error:  # damaged bytes make zipfile, zlib, struct and ast raise errors of many types
            raise ValueError(f"{type(error).__name__} {error}") from error


def _unpacked(file: Any, left: int) -> dict[str, np.ndarray]:
    """Returns the arrays of an open .npz file that take at most so many bytes together."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = array = parse_npy(member, left)
                left -= array.nbytes
    return found


def read_arrays(path: os.PathLike | str) -> np.ndarray | dict[str, np.ndarray]:
    """Reads an .npy or an .npz file; see `read_npz` for what is raised."""
    with open_regular(path) as file:
        is_zip = file.read(2) == b"PK"
    return read_npz(path) if is_zip else read_array(path)


class _DType:
    """Stands for a NumPy dtype in a pickle; `value` is None if it is not a type of numbers."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("latin1") if isinstance(code, bytes) else str(code)
        self._code = code
        self.value = np.dtype(code) if re.fullmatch("b1|[iu][1248]|f[248]", code) else None

    def __setstate__(self, state: tuple):
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"byte order {order!r}")
        if self.value is not None:
            self.value = np.dtype(f"{order}{self._code}")


class _Array:
    """Stands for a NumPy array in a pickle; nothing is allocated for a shape without its bytes."""

    def __init__(self, *_: Any):
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or dtype.value is None or not isinstance(data, bytes | str):
            raise ValueError("an array that does not hold numbers")
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote strings
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.value, dtype)


class BoundedUnpickler(pickle._Unpickler):  # the one in C allocates as much memory as a pickle's memo asks for
    """An unpickler in Python that allocates nothing that a pickle only claims to hold."""

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it has a bytearray, which no data and no weights need")

    # Python allocates a bytearray of the length that the pickle says before it reads the bytes.
    dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _refuse}


class ArrayUnpickler(BoundedUnpickler):
    """Unpickles containers, numbers, texts and arrays of numbers; refuses any other name, so that no code runs.

    Args:
      content: The pickle. An array in it is an object that np.asarray turns into an array.
    """

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = 4 * len(content)  # bytes that texts may be turned into
        self._meanings = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _DType,
            ("_codecs", "encode"): self._encode,  # Python 3 writes bytes so in protocol 2
        }

    def _encode(self, text: str, _: Any) -> bytes:
        self._left -= len(text)
        if self._left < 0:
            raise TooLarge("its texts take far more than the file")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._meanings:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the data does not need")
        return self._meanings[module, name]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names the extension {code}, which the data does not need")

    def persistent_load(self, pid: Any) -> None:
        raise pickle.UnpicklingError("it refers to something outside of it")


def files_outside(paths: Iterable[str], root: os.PathLike | str) -> list[str]:
    """Returns those of some files that are links which lead out of a folder."""
    folder = pathlib.Path(root).resolve()
    return [path for path in paths if os.path.islink(path) and not pathlib.Path(path).resolve().is_relative_to(folder)]
