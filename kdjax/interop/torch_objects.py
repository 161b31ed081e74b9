"""Objects that stand for the names in a PyTorch pickle.

The unpickler imports nothing that a pickle names, but looks it up in MEANINGS. A hostile pickle may call these objects
with any arguments. It can neither change them nor reach other objects through them.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
TORCH_DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128", "bool"),
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
)


class _Sealed:
    """An object that a pickle cannot change after it is made."""

    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes an object that has no state")


class _Inert:
    """Stands for everything that weights do not need, such as devices; ignores its arguments."""

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    # Called on the class itself, this lacks an argument, so that a pickle cannot change the class either.
    def __setstate__(self, state):
        pass


class _Dict(dict):
    """Stands for every kind of mapping; ignores attributes, such as the _metadata of a state dict."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Call(_Sealed):
    """A function without the attributes through which a pickle could change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class StorageType(_Sealed):
    """Stands for a class of storages, such as torch.FloatStorage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class Storage(_Sealed):
    """A sequence of numbers somewhere in the file."""

    __slots__ = ("dtype", "key", "size", "source")

    def __init__(self, dtype: np.dtype, key: str, size: int, source: "Storages"):
        self.dtype, self.key, self.size, self.source = dtype, key, size, source

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class Storages:
    """The storages of a file.

    Args:
      fetch: Function from a storage's key and its number of bytes to its bytes.
      limit: Number of bytes that all arrays together may take.
      big: Whether the bytes are big-endian.
    """

    def __init__(self, fetch: Callable[[str, int], bytes], limit: int, big: bool = False):
        self._fetch, self._left, self._big = fetch, limit, big
        self._read = {}

    def spend(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise ValueError("its tensors are far larger than the file")

    def numbers(self, storage: Storage) -> np.ndarray:
        if (storage.key, storage.dtype) not in self._read:
            data = self._fetch(storage.key, storage.nbytes)
            if len(data) < storage.nbytes:
                raise ValueError(f"storage {storage.key} is truncated")
            self._read[storage.key, storage.dtype] = self._ordered(data[: storage.nbytes], storage.dtype)
        return self._read[storage.key, storage.dtype]

    def _ordered(self, data: bytes, dtype: np.dtype) -> np.ndarray:
        if self._big:
            part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
            data = np.frombuffer(data, f"u{part}").byteswap().tobytes()
        return np.frombuffer(data, dtype)


class _Tensor(_Sealed):
    """A tensor, which is checked to be inside its storage. np.asarray copies it; 16-bit floats become float32."""

    __slots__ = ("shape", "_storage", "_offset", "_strides")

    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple):
        if not isinstance(storage, Storage) or len(shape) != len(strides) or not naturals(offset, *shape, *strides):
            raise ValueError("a tensor without storage, shape and strides")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise ValueError(f"a tensor that extends beyond storage {storage.key}")
        self.shape, self._storage, self._offset, self._strides = tuple(shape), storage, offset, strides

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        stored = self._storage.dtype
        wanted = np.dtype(np.float32) if stored in (np.float16, ml_dtypes.bfloat16) else stored
        self._storage.source.spend(math.prod(self.shape) * wanted.itemsize)
        if not math.prod(self.shape):
            return np.zeros(self.shape, wanted)
        numbers = self._storage.source.numbers(self._storage)[self._offset :]
        strides = [stride * stored.itemsize for stride in self._strides]
        view = np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)
        return np.array(view, dtype or wanted, order="C")


def naturals(*numbers: Any) -> bool:
    """Returns whether all values are Python integers of at least 0."""
    return all(type(number) is int and number >= 0 for number in numbers)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> _Tensor:
    if metadata:
        raise ValueError("a tensor with flags such as a pending conjugation")
    return _Tensor(storage, offset, shape, strides)


class _DType:
    """A NumPy dtype, made from its code; `value` is None if it is not a type of numbers."""

    __slots__ = ("value", "_code")

    def __init__(self, code: str, *_):
        if str(code).startswith("O"):
            raise pickle.UnpicklingError("an array of Python objects")
        self._code = code
        self.value = np.dtype(code) if re.fullmatch("b1|[iu][1248]|f[248]|c8|c16", str(code)) else None

    def __setstate__(self, state: tuple):
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError(f"byte order {state[1]!r}")
        if self.value is not None:
            self.value = np.dtype(f"{state[1]}{self._code}")


class _NumpyArray:
    """A NumPy array. If it does not hold numbers, it has no shape and therefore does not count as weights."""

    __slots__ = ("shape", "_array")

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | str) or not naturals(*shape):
            raise ValueError("an array without dtype, shape and data")
        if dtype.value is not None:
            data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote strings
            flat = np.frombuffer(data, dtype.value)
            self._array = flat.reshape(shape, order="F" if fortran else "C")
            self._array = self._array.astype(dtype.value.newbyteorder("="), copy=False)
            self.shape = self._array.shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self._array, dtype, order="C")


def _latin1(text: str = "", encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return str.encode(text, "latin1")


# Name in a pickle -> the object that stands for it.
MEANINGS = {
    **{f"torch.{name}": StorageType(dtype) for name, dtype in STORAGES.items()},
    **{f"torch.{name}": _Inert for name in ("device", *TORCH_DTYPES)},
    "torch.Size": _Call(tuple),
    "torch._utils._rebuild_tensor": _Call(_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(lambda data, *_: data),
    "collections.OrderedDict": _Call(_Dict),
    "collections.Counter": _Call(_Dict),
    "collections.defaultdict": _Call(lambda factory=None, *items: _Dict(*items)),
    "argparse.Namespace": _Inert,
    "numpy.ndarray": _Inert,
    "numpy.dtype": _Call(_DType),
    "_codecs.encode": _Call(_latin1),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # the names before and since NumPy 2
    MEANINGS[f"{_module}._reconstruct"] = _Call(lambda *_: _NumpyArray())
    MEANINGS[f"{_module}.scalar"] = _Inert
for _module in ("builtins", "__builtin__"):  # the names in Python 3 and in pickles of protocol 2
    MEANINGS |= {f"{_module}.{name}": _Inert for name in ("dict", "list", "int")}  # factories of a defaultdict
    MEANINGS |= {f"{_module}.set": _Call(set), f"{_module}.bytes": _Call(lambda: b"")}
