"""Reads files of torch.save without PyTorch, in the zip form and in the legacy form, even if they are hostile.

Nothing that a pickle names is imported; each name stands for an object of `torch_objects`.
"""

import io
import pickle
import struct
import zipfile
from typing import Any

from kdjax.bounded import BoundedUnpickler, read_member
from kdjax.interop.torch_objects import MEANINGS, Storage, Storages, StorageType, naturals

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")  # the magic number in a pickle, after the protocol's number
SPARE = 1 << 24  # bytes that the tensors of any file may take, besides a multiple of its size
SAVE = "load it with PyTorch if you trust it, and save only model.state_dict()"


class Refused(Exception):
    """A file is not a file of weights. The text says what it is and what to do, and follows the file's name."""


def load_zip(archive: zipfile.ZipFile, root: str, limit: int) -> Any:
    """Reads the pickle of a zip file.

    A tensor is read when it is turned into an array, so that `archive` must stay open until then.

    Args:
      archive: Archive with `root`data.pkl and the storages `root`data/0, `root`data/1 and so on.
      root: Name of the folder in the archive, with its slash.
      limit: Number of bytes that all arrays together may take.

    Returns:
      The saved containers, numbers and strings, and objects with a `shape` that np.asarray turns into arrays.

    Raises:
      Refused: The pickle names something that weights do not need.
      Exception: The bytes are damaged; the exception may have any type.
    """
    order = read_member(archive, f"{root}byteorder", 16) if f"{root}byteorder" in archive.namelist() else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"byte order {order!r}")
    raw = read_member(archive, f"{root}data.pkl", limit)
    left = limit

    def fetch(key: str, size: int) -> bytes:
        nonlocal left
        left -= size
        if left < 0:
            raise ValueError("its storages are far larger than the file")
        with archive.open(f"{root}data/{key}") as member:  # no more is unpacked than the storage has
            return member.read(size)

    return _unpickle(_Unpickler(io.BytesIO(raw), Storages(fetch, limit, order == b"big")), raw)


def load_legacy(content: bytes) -> Any:
    """Reads the form that PyTorch had before 1.6, which has the storages after the pickles.

    Args:
      content: Bytes of the file.

    Returns:
      The same as `load_zip`.

    Raises:
      Refused: The pickle names something that weights do not need.
      Exception: The bytes are damaged; the exception may have any type.
    """
    file, table = io.BytesIO(content), {}
    head = [_unpickle(_Unpickler(file), content) for _ in range(3)]  # the third has the sizes of the writer's integers
    if head[:2] != [MAGIC, PROTOCOL]:
        raise ValueError("the magic number and the protocol are not those of torch.save")
    unpickler = _Unpickler(file, Storages(lambda key, size: table[key], allowance(len(content))))
    tree = _unpickle(unpickler, content)
    for key in _unpickle(_Unpickler(file), content):
        storage = unpickler.seen[key]
        (size,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        if size != storage.size or start + storage.nbytes > len(content):
            raise ValueError(f"storage {key} is truncated")
        table[key] = memoryview(content)[start : start + storage.nbytes]
        file.seek(start + storage.nbytes)
    return tree


def allowance(size: int) -> int:
    """Returns how many bytes the arrays of a file of `size` bytes may take.

    This is more than the size of the file, since several tensors may be views of one storage.
    """
    return 16 * size + SPARE


def _unpickle(unpickler: "_Unpickler", raw: bytes) -> Any:
    try:
        return unpickler.load()
    except _Unknown as error:
        if b"_modules" in raw and b"_parameters" in raw:
            raise Refused(f"is a whole pickled model, not weights (it names {error}): {SAVE}.") from error
        raise Refused(f"names {error}, which weights do not need; nothing of it was run: {SAVE}.") from error


class _Unknown(Exception):
    """A pickle names something that MEANINGS lacks."""


class _Unpickler(BoundedUnpickler):
    """Unpickles containers, numbers, strings and the objects of MEANINGS."""

    def __init__(self, file: io.BytesIO, source: Storages | None = None):
        super().__init__(file, encoding="latin1")
        self._source = source
        self.seen: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if "." in name or f"{module}.{name}" not in MEANINGS:
            raise _Unknown(f"{module}.{name}"[:100].encode("unicode_escape").decode())
        return MEANINGS[f"{module}.{name}"]

    def get_extension(self, code: int) -> None:
        raise _Unknown(f"extension {code}")

    def persistent_load(self, pid: Any) -> Storage:
        if self._source is None or not isinstance(pid, tuple) or len(pid) < 5 or any(pid[5:]):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        kind, tag, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(tag, StorageType) or type(key) is not str or not naturals(size):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        self.seen[key] = Storage(tag.dtype, key, size, self._source)
        return self.seen[key]
