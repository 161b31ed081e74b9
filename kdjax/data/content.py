"""What a data set holds, as hashes: files that were replaced under the same names are noticed."""

import functools
import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kdjax.bounded import open_regular

END = 1 << 16  # bytes at the beginning and at the end of a file that are read
MOST_FILES = 20_000  # files that are read, evenly spread; of all others the names and sizes count
CHUNK = 256  # files that one thread reads in a row
SOFT_STEPS = 4096  # distributions are rounded to this part of 1, since they may be computed, by any machine


class Content:
    """What a source returned. Its hashes are computed when they are first asked for.

    Args:
      images: Array, or encoded images.
      labels: Labels [rows].
      soft: Distributions [rows, classes], or None.
    """

    def __init__(self, images: Any, labels: np.ndarray, soft: np.ndarray | None):
        self._images, self._labels, self._soft = images, labels, soft

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """{'images', 'labels' and, where there are distributions, 'soft'} -> sha256 in hexadecimal."""
        images = self._images
        found = {"images": array_hash(images) if isinstance(images, np.ndarray) else images.content_hash()}
        return {**found, **target_hashes(self._labels, self._soft)}


def target_hashes(labels: np.ndarray, soft: np.ndarray | None) -> dict[str, str]:
    """Returns {'labels' and, where there are distributions, 'soft'} -> sha256 in hexadecimal."""
    found = {"labels": array_hash(labels.astype("<i8"))}
    if soft is not None:
        found["soft"] = array_hash(np.rint(soft * SOFT_STEPS).astype("<i4"))
    return found


def array_hash(array: np.ndarray) -> str:
    """Returns the sha256 of an array: its shape, its dtype and its values."""
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{ordered.shape} {ordered.dtype.name}".encode())
    digest.update(ordered.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def files_hash(paths: Sequence[str], root: str) -> str:
    """Returns the sha256 of files: their names, sizes, and first and last 64 KB; their times do not count.

    A link that leads nowhere, a pipe and a folder count by their names: `config.data.skip_bad` may leave them out.

    Args:
      paths: Path of each file.
      root: Folder that the names are relative to, so that a copy elsewhere has the same hash.
    """
    chosen = {*np.unique(np.linspace(0, len(paths) - 1, MOST_FILES).astype(int)).tolist()}

    def describe(start: int) -> bytes:
        rows = range(start, min(start + CHUNK, len(paths)))
        return b"".join(
            f"{os.path.relpath(paths[row], root)}\0{size}\0".encode(errors="surrogateescape")
            + (_ends(paths[row]) if row in chosen and size >= 0 else b"")
            for row, size in zip(rows, (_size(paths[row]) for row in rows), strict=True)
        )

    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as readers:
        for part in readers.map(describe, range(0, len(paths), CHUNK)):
            digest.update(part)
    return digest.hexdigest()


def _size(path: str) -> int:
    """Returns the size of a file, -1 if there is none or it is no regular file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _ends(path: str) -> bytes:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        for start in (0, max(size - END, 0)):
            file.seek(start)
            digest.update(file.read(END))
    return digest.digest()
