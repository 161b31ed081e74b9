"""What torch.save wrote, read without PyTorch and without trust: the zip form and the legacy form.

Nothing that a pickle names is imported. Its names are looked up in MEANINGS, where each stands for an object made here:
one that a hostile pickle may call with any arguments, and that it can neither change nor reach through.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")  # as pickle writes it, after the number of its protocol
SPARE = 1 << 24  # bytes that the tensors of a tiny file may take beyond a multiple of its size
SAVE = "load it where you trust it and save model.state_dict() alone"

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


class Refused(Exception):
    """What a file is instead of weights, and what to do; the text goes on after the file's name."""


def load_zip(archive: zipfile.ZipFile, root: str, limit: int) -> Any:
    """Reads the pickle of a zip file; its tensors are read when NumPy asks for them, while `archive` is open.

    Args:
      archive: holds `root`data.pkl and the storages `root`data/0, `root`data/1, ...
      root: the folder in the archive, with its slash.
      limit: bytes that the tensors asked for may take together.

    Returns:
      What was saved: containers, numbers, strings, and objects with a `shape` that np.asarray turns into arrays.

    Raises:
      Refused: the pickle names what has no place among weights.
      Exception: of any kind, from damaged bytes.
    """
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"byte order {order!r}")
    raw = archive.read(f"{root}data.pkl")

    def fetch(key: str, size: int) -> bytes:
        member = archive.getinfo(f"{root}data/{key}")
        return archive.read(member) if member.file_size >= size else b""

    return _unpickle(_Unpickler(io.BytesIO(raw), _Storages(fetch, limit, order == b"big")), raw)


def load_legacy(content: bytes) -> Any:
    """Reads the form before PyTorch 1.6, pickles and then storages; returns and raises as `load_zip`."""
    file, table = io.BytesIO(content), {}
    head = [_unpickle(_Unpickler(file), content) for _ in range(3)]  # the third tells the writer's number sizes
    if head[:2] != [MAGIC, PROTOCOL]:
        raise ValueError("not the magic number and protocol of torch.save")
    unpickler = _Unpickler(file, _Storages(lambda key, size: table[key], allowance(len(content))))
    tree = _unpickle(unpickler, content)
    for key in _unpickle(_Unpickler(file), content):
        storage = unpickler.seen[key]
        (size,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        if size != storage.size or start + storage.nbytes > len(content):
            raise ValueError(f"storage {key} is cut short")
        table[key] = memoryview(content)[start : start + storage.nbytes]
        file.seek(start + storage.nbytes)
    return tree


def allowance(size: int) -> int:
    """Returns the bytes that the tensors of a file of `size` bytes may take: views of one storage add up to more."""
    return 16 * size + SPARE


def _unpickle(unpickler: "_Unpickler", raw: bytes) -> Any:
    try:
        return unpickler.load()
    except _Unknown as error:
        if b"_modules" in raw and b"_parameters" in raw:
            raise Refused(f"is a whole pickled model, not weights (it names {error}): {SAVE}.") from error
        raise Refused(f"names {error}, which has no place among weights; nothing of it was run: {SAVE}.") from error


class _Unknown(Exception):
    """A name that MEANINGS lacks."""


class _Sealed:
    """What a pickle cannot change once it is made."""

    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes what has no state")


class _Inert:
    """Stands for all that weights can do without, such as devices; forgets what it is given."""

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __setstate__(self, state):  # also keeps pickles from changing the class: asked of it, an argument is missing
        pass


class _Dict(dict):
    """Every kind of mapping; forgets attributes, such as a state dict's _metadata."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Call(_Sealed):
    """A function, without the attributes by which a pickle could change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class _StorageType(_Sealed):
    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Storage(_Sealed):
    """Numbers in a row, somewhere in the file."""

    __slots__ = ("dtype", "key", "size", "source")

    def __init__(self, dtype: np.dtype, key: str, size: int, source: "_Storages"):
        self.dtype, self.key, self.size, self.source = dtype, key, size, source

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _Storages:
    """The storages of a file.

    Args:
      fetch: key, bytes wanted -> the storage's bytes.
      limit: bytes that may be handed out.
      big: big-endian.
    """

    def __init__(self, fetch: Callable[[str, int], bytes], limit: int, big: bool = False):
        self._fetch, self._left, self._big = fetch, limit, big
        self._read = {}

    def spend(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise ValueError("tensors far larger than the file")

    def numbers(self, storage: _Storage) -> np.ndarray:
        if (storage.key, storage.dtype) not in self._read:
            data = self._fetch(storage.key, storage.nbytes)
            if len(data) < storage.nbytes:
                raise ValueError(f"storage {storage.key} is cut short")
            self._read[storage.key, storage.dtype] = self._ordered(data[: storage.nbytes], storage.dtype)
        return self._read[storage.key, storage.dtype]

    def _ordered(self, data: bytes, dtype: np.dtype) -> np.ndarray:
        if self._big:
            part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
            data = np.frombuffer(data, f"u{part}").byteswap().tobytes()
        return np.frombuffer(data, dtype)


class _Tensor(_Sealed):
    """A view of a storage, checked to lie in it; NumPy gets a copy, 16-bit floats as float32."""

    __slots__ = ("shape", "_storage", "_offset", "_strides")

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or not _naturals(offset, *shape, *strides):
            raise ValueError("a tensor without storage, shape and strides")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise ValueError(f"a tensor that reaches out of storage {storage.key}")
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


def _naturals(*numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> _Tensor:
    if metadata:
        raise ValueError("a tensor with flags such as a pending conjugation")
    return _Tensor(storage, offset, shape, strides)


class _DType:
    """A NumPy dtype, by its code; `value` is None for what is not a number."""

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
    """A NumPy array; without a shape, thus none of the weights, when it holds no numbers."""

    __slots__ = ("shape", "_array")

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | str) or not _naturals(*shape):
            raise ValueError("an array without dtype, shape and data")
        if dtype.value is not None:
            data = data.encode("latin1") if isinstance(data, str) else data  # what Python 2 wrote
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


MEANINGS = {
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in STORAGES.items()},
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
for _room in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 2 moved it
    MEANINGS[f"{_room}._reconstruct"] = _Call(lambda *_: _NumpyArray())
    MEANINGS[f"{_room}.scalar"] = _Inert
for _room in ("builtins", "__builtin__"):  # Python 3, and what protocol 2 calls it
    MEANINGS |= {f"{_room}.{name}": _Inert for name in ("dict", "list", "int")}  # what a defaultdict makes
    MEANINGS |= {f"{_room}.set": _Call(set), f"{_room}.bytes": _Call(lambda: b"")}


class _Unpickler(pickle._Unpickler):  # the one in C allocates whatever place in its memo a pickle names
    def __init__(self, file: io.BytesIO, source: _Storages | None = None):
        super().__init__(file, encoding="latin1")
        self._source = source
        self.seen: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if "." in name or f"{module}.{name}" not in MEANINGS:
            raise _Unknown(f"{module}.{name}"[:100].encode("unicode_escape").decode())
        return MEANINGS[f"{module}.{name}"]

    def get_extension(self, code: int) -> None:
        raise _Unknown(f"extension {code}")

    def persistent_load(self, pid: Any) -> _Storage:
        if self._source is None or not isinstance(pid, tuple) or len(pid) < 5 or any(pid[5:]):
            raise pickle.UnpicklingError("it points at something that is no storage")
        kind, tag, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(tag, _StorageType) or type(key) is not str or not _naturals(size):
            raise pickle.UnpicklingError("it points at something that is no storage")
        self.seen[key] = _Storage(tag.dtype, key, size, self._source)
        return self.seen[key]
