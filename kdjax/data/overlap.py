"""Finds images that occur in two splits, which would make a test score too good."""

import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from absl import logging

from kdjax.data.encoded import Encoded, Files
from kdjax.errors import UserError

TAIL = 1024  # bytes at the end of a file; two different images of the same length nearly always differ there
BATCH = 256  # files in one task, since starting a task costs as much as reading a file
READERS = 16  # threads, since most of the time of reading small files is waiting

Keys = dict[str, dict[int, Hashable]]  # split -> row -> a value that two rows share if and only if their images do


def overlaps(images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """Counts the different images that two splits have in common.

    Args:
      images: Array [rows, ...], or encoded images, of which the encoded bytes are compared.
      splits: Name of each split -> its rows.

    Returns:
      (one split, another split) -> number of different images in both, for all pairs of splits that share any.
    """
    keys = _content_keys(images, splits)
    shared = {(a, b): len(set(keys[a].values()) & set(keys[b].values())) for a, b in itertools.combinations(keys, 2)}
    return {pair: count for pair, count in shared.items() if count}


def shared_rows(images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    """Returns the sorted rows [size] of one split whose images are also in another split.

    Args:
      images: Array [rows, ...], or encoded images, of which the encoded bytes are compared.
      splits: Name of each split -> its rows.
      split: Name of the split whose rows are returned; no rows if `splits` lacks it.
    """
    keys = _content_keys(images, splits)
    others = set().union(*(own.values() for name, own in keys.items() if name != split))
    return np.array(sorted(row for row, key in keys.get(split, {}).items() if key in others), np.int32)


def check_overlap(
    name: str, images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray], *, allow: bool, official: bool = False
) -> None:
    """Refuses a data set whose splits share images; logs a warning where that is allowed or the splits are official.

    Args:
      name: Name of the data set, for the message.
      images: Array [rows, ...], or encoded images, of which the encoded bytes are compared.
      splits: Name of each split -> its rows.
      allow: config.data.allow_overlap.
      official: Whether the publisher of the data set made the training and the test set. All published results are on
        these sets, so that shared images are reported and not refused.

    Raises:
      UserError: Two splits share images. The message has the counts.
    """
    shared = overlaps(images, splits)
    if not shared:
        return
    counts = ", ".join(f"{a} and {b} share {count}" for (a, b), count in shared.items())
    line = f"data set '{name}' has the same images in two splits{' as published' if official else ''}: {counts}"
    if official:
        advice = "config.data.report_unshared = True also reports the accuracy on the test images that are not shared"
        _warn_once(f"{line}; {advice}.")
    elif allow:
        logging.warning("%s.", line)
    else:
        raise UserError(f"{line}; set config.data.allow_overlap = True to use it nevertheless.")


@functools.lru_cache
def _warn_once(line: str) -> None:
    """Logs a line the first time that it is asked for, since a study trains many runs on one data set."""
    logging.warning("%s", line)


def _content_keys(images: np.ndarray | Encoded, splits: Mapping[str, np.ndarray]) -> Keys:
    """Returns a key for the content of every row that may be in two splits."""
    rows_of = {name: [int(row) for row in rows] for name, rows in splits.items()}
    if isinstance(images, Files):
        return _keys_of_files(images.paths, rows_of)
    if isinstance(images, Encoded):
        digests = getattr(images, "digests", None)
        content = images.encoded if digests is None else lambda row: digests[row].tobytes()
        return _keys(rows_of, lambda row: _digest(content(row)))
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    return _keys(rows_of, lambda row: _digest(flat[row]))


def _digest(content: bytes | np.ndarray) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _keys(splits: Mapping[str, Sequence[int]], key: Callable[[int], Hashable]) -> Keys:
    return {name: {row: key(row) for row in rows} for name, rows in splits.items()}


def _keys_of_files(paths: Sequence[str], splits: Mapping[str, Sequence[int]]) -> Keys:
    """Compares lengths, then last bytes, then whole files; each time only files that agreed with another split's."""
    keys: Keys = {}
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for key in (_length, _tail, _whole):
            keys = {name: _map(pool, key, paths, rows) for name, rows in splits.items()}
            splits = _rows_in_two_splits(keys)
    return keys


def _map(
    pool: concurrent.futures.Executor, key: Callable[[str], Hashable], paths: Sequence[str], rows: Sequence[int]
) -> dict[int, Hashable]:
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


def _rows_in_two_splits(keys: Keys) -> dict[str, list[int]]:
    values = {name: set(own.values()) for name, own in keys.items()}
    found = {}
    for name, own in keys.items():
        others = set().union(*(other for key, other in values.items() if key != name))
        found[name] = [row for row, value in own.items() if value in others]
    return found
