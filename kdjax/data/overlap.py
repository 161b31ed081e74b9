"""Images that two splits share, by path or by content: what a test score must not rest on."""

import concurrent.futures
import hashlib
import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from absl import logging

from kdjax.data.encoded import Encoded, Files
from kdjax.errors import UserError

TAIL = 1024  # bytes at the end of a file, which nearly always tell two images of one length apart
BATCH = 256  # files a task, since a task costs as much as a file
READERS = 16  # threads, since reading many small files is waiting


def overlaps(images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """Counts the images that two splits have in common.

    Of files only those are read whole that agree with one of another split in length and in their last bytes.

    Args:
      images: [rows, ...] an array, or images that are still encoded (then it is their encoded bytes that are compared).
      splits: name -> rows.

    Returns:
      (one split, another) -> how many different images lie in both, for every two splits that share any.
    """
    splits = {name: [int(row) for row in rows] for name, rows in splits.items()}
    if isinstance(images, Files):
        keys = _keys_of_files(images.paths, splits)
    elif isinstance(images, Encoded):
        digests = getattr(images, "digests", None)
        content = images.encoded if digests is None else lambda row: digests[row].tobytes()
        keys = _keys(splits, lambda row: _digest(content(row)))
    else:
        rows = np.ascontiguousarray(images).reshape(len(images), -1)
        keys = _keys(splits, lambda row: _digest(rows[row]))
    shared = {(a, b): len(set(keys[a].values()) & set(keys[b].values())) for a, b in itertools.combinations(splits, 2)}
    return {pair: count for pair, count in shared.items() if count}


def check_overlap(name: str, images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray], allow: bool) -> None:
    """Refuses a data set whose splits share images, or warns of it.

    Args:
      name: of the data set, for the message.
      images, splits: as `overlaps` takes them.
      allow: config.data.allow_overlap.

    Raises:
      UserError: two splits share images and that is not allowed; the message has the counts.
    """
    shared = overlaps(images, splits)
    if not shared:
        return
    counts = ", ".join(f"{a} and {b} share {count}" for (a, b), count in shared.items())
    if not allow:
        raise UserError(
            f"data set '{name}' has the same images in two splits: {counts}; set config.data.allow_overlap = True to "
            "use it nevertheless."
        )
    logging.warning("data set '%s' has the same images in two splits: %s", name, counts)


def _digest(content: bytes | np.ndarray) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _keys(splits: Mapping[str, Sequence[int]], key: Callable[[int], Hashable]) -> dict[str, dict[int, Hashable]]:
    return {name: {row: key(row) for row in rows} for name, rows in splits.items()}


def _keys_of_files(paths: Sequence[str], splits: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Hashable]]:
    """Returns for the rows that may be in two splits what tells them apart: finer keys, for fewer rows each time."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for key in (_length, _tail, _whole):
            keys = {name: _map(pool, key, paths, rows) for name, rows in splits.items()}
            splits = _in_two(keys)
    return keys


def _map(pool, key: Callable[[str], Hashable], paths: Sequence[str], rows: Sequence[int]) -> dict[int, Hashable]:
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    found = pool.map(lambda batch: [key(paths[row]) for row in batch], batches)
    return dict(zip(rows, itertools.chain.from_iterable(found), strict=True))


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _tail(path: str) -> bytes:
    return _read(path, TAIL)


def _whole(path: str) -> bytes:
    return _digest(_read(path))


def _read(path: str, last: int = 0) -> bytes:
    try:
        with open(path, "rb") as file:
            if last:
                file.seek(-min(last, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _in_two(keys: Mapping[str, Mapping[int, Hashable]]) -> dict[str, list[int]]:
    """Returns the rows of each split whose key another split has too."""
    values = {name: set(own.values()) for name, own in keys.items()}
    found = {}
    for name, own in keys.items():
        others = set().union(*(other for key, other in values.items() if key != name))
        found[name] = [row for row, value in own.items() if value in others]
    return found
