"""Reads CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the original python or binary files, packed or unpacked."""

import functools
import gzip
import pathlib
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax.bounded import ArrayUnpickler, open_regular
from kdjax.data import tfds_source
from kdjax.data.dataset import Rows
from kdjax.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/"
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
PIXELS = 3 * 32 * 32
MOST_BYTES = 200_000_000  # of one file; the largest has 155 million
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error)  # exceptions of reading a truncated archive


class Layout(NamedTuple):
    """One of the two forms in which a set is distributed.

    Attributes:
      archive: File name of the archive.
      folder: Folder that the archive unpacks to.
      train: Names of the files of training images in the folder.
      test: Names of the files of test images in the folder.
      parse: Function from the bytes of a file to pixels [rows, 3072] and labels [rows].
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]]


def load_cifar10(data_dir: str) -> Rows:
    """Reads CIFAR-10 in the order of the original files.

    Takes the first of these that `data_dir` has: the python folder, the python archive, the binary folder, the binary
    archive, a copy that tensorflow-datasets prepared.

    Args:
      data_dir: Directory of the files.

    Raises:
      UserError: The files are missing or damaged. The message says what to download.
    """
    return _load(data_dir, "cifar10", 10)


def load_cifar100(data_dir: str) -> Rows:
    """Reads CIFAR-100 with its 100 fine labels, in the same places and forms as `load_cifar10`."""
    return _load(data_dir, "cifar100", 100)


def _load(data_dir: str, name: str, num_classes: int) -> Rows:
    for layout in LAYOUTS[name]:
        found = _read(pathlib.Path(data_dir), layout)
        if found:
            path, files = found
            return _rows(path, files, layout, num_classes)
    if tfds_source.is_there(data_dir, name):
        return tfds_source.load_tfds(data_dir, name=name)
    archive = LAYOUTS[name][0].archive
    raise UserError(
        f"data set '{name}' is not in {data_dir}; {tfds_source.how_to_prepare(name, data_dir)} "
        f"(or download {URL}{archive} and put it there without unpacking it, or name its folder with --data_dir)."
    )


def _read(data_dir: pathlib.Path, layout: Layout) -> tuple[pathlib.Path, dict[str, bytes]] | None:
    """Returns the path at which a layout was found and the content of its files, or None if it is not there."""
    folder, archive = data_dir / layout.folder, data_dir / layout.archive
    path, read = (folder, _read_folder) if folder.is_dir() else (archive, _read_archive)
    if not path.exists():
        return None
    try:
        return path, read(path, layout)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # a system error; gzip raises OSError without a number
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        raise _damaged(path, layout, f"{type(error).__name__}: {error}") from error


def _read_folder(folder: pathlib.Path, layout: Layout) -> dict[str, bytes]:
    files = {}
    for name in layout.train + layout.test:
        if (folder / name).exists():
            with open_regular(folder / name) as file:
                files[name] = _content(file, name)
    return files


def _content(file: Any, name: str) -> bytes:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise EOFError(f"{name} has more than {MOST_BYTES:,} bytes")
    return content


def _read_archive(archive: pathlib.Path, layout: Layout) -> dict[str, bytes]:
    """Reads the archive in one pass, since going back in a compressed archive would unpack it again."""
    wanted = {f"{layout.folder}/{name}": name for name in layout.train + layout.test}
    files = {}
    with open_regular(archive) as packed, gzip.open(packed) as unpacked:
        with tarfile.open(fileobj=unpacked, mode="r|") as members:
            for member in members:
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isfile():
                    files[name] = _content(members.extractfile(member), name)
        while unpacked.read(1 << 20):  # gzip checks its checksum only at the end of the file
            if unpacked.tell() > 8 * MOST_BYTES:
                raise EOFError("it does not end")
    return files


def _rows(path: pathlib.Path, files: dict[str, bytes], layout: Layout, num_classes: int) -> Rows:
    missing = [name for name in layout.train + layout.test if name not in files]
    if missing:
        raise _damaged(path, layout, f"it lacks {missing[0]}")
    parts = {}
    for name, content in files.items():
        try:
            pixels, labels = layout.parse(content)
            parts[name] = _as_images(pixels), _as_labels(labels, len(pixels), num_classes)
        except Exception as error:  # unpickling damaged bytes may raise any type
            raise _damaged(path, layout, f"{name}: {type(error).__name__}: {error}") from error
    images, labels = (np.concatenate([parts[name][i] for name in layout.train + layout.test]) for i in (0, 1))
    num_train = sum(len(parts[name][1]) for name in layout.train)
    return Rows(images, labels, None, num_classes, num_train)


def _damaged(path: pathlib.Path, layout: Layout, what: str) -> UserError:
    line = " ".join(what.split())
    return UserError(f"{path} is damaged or incomplete ({line}); remove it and download {URL}{layout.archive} again.")


def _as_images(pixels: np.ndarray) -> np.ndarray:
    """Returns images [rows, 32, 32, 3] from bytes [rows, 3072], which hold one plane after another."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"images must be uint8 [rows, {PIXELS}], not {pixels.dtype} {list(pixels.shape)}")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _as_labels(labels: np.ndarray, rows: int, num_classes: int) -> np.ndarray:
    if labels.shape != (rows,) or not rows or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"there must be {rows} labels in [0, {num_classes - 1}]")
    return labels.astype(np.int32)


def _parse_binary(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses rows of label bytes, of which the last is the finest label, and 3,072 bytes of pixels."""
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise ValueError(f"{len(content)} bytes are not rows of {size}")
    table = np.frombuffer(content, np.uint8).reshape(-1, size)
    return table[:, label_bytes:], table[:, label_bytes - 1]


def _parse_pickle(content: bytes, label: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = ArrayUnpickler(content).load()
    return np.asarray(batch[b"data"]), np.asarray(batch[label])


_BIN = tuple(f"{name}.bin" for name in BATCHES)
LAYOUTS = {
    "cifar10": (
        Layout(
            "cifar-10-python.tar.gz", "cifar-10-batches-py", BATCHES, ("test_batch",),
            functools.partial(_parse_pickle, label=b"labels"),
        ),
        Layout(
            "cifar-10-binary.tar.gz", "cifar-10-batches-bin", _BIN, ("test_batch.bin",),
            functools.partial(_parse_binary, label_bytes=1),
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",),
            functools.partial(_parse_pickle, label=b"fine_labels"),
        ),
        Layout(
            "cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), ("test.bin",),
            functools.partial(_parse_binary, label_bytes=2),
        ),
    ),
}  # fmt: skip
