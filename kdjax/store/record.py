"""The record of a checkpoint: shape, dtype and checksum of every leaf, and the caller's progress."""

import errno
import json
import os
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np

from kdjax.errors import UserError
from kdjax.store import tree
from kdjax.store.files import disk_error, first_line, plain


class Damaged(Exception):
    """A checkpoint is damaged; the text is one line that says why."""


# Errors of the system that say nothing about the content of a file.
_SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOLCK, errno.EBUSY, errno.EROFS),
)
_OTHER_SYSTEM = ("unable to initialize backend", "resource_exhausted", "permission_denied", "deadline_exceeded")


def as_damage(path: pathlib.Path, error: Exception, text: str) -> Exception:
    """Returns what to raise for an exception of a reader: damage, or an error of the system that is not damage.

    An older checkpoint takes the place of a damaged one, which must not happen because a file may not be read now.

    Args:
      path: Path of the checkpoint.
      error: The exception.
      text: What is damaged, in one line.
    """
    cause: BaseException | None = error
    while cause is not None:
        for code in _SYSTEM:
            if getattr(cause, "errno", None) == code or os.strerror(code) in str(cause):
                return disk_error(path, OSError(code, os.strerror(code)), "read")
        if isinstance(cause, MemoryError) or any(word in str(cause).lower() for word in _OTHER_SYSTEM):
            reason = first_line(Exception(str(cause) or "there is not enough memory"))
            return UserError(f"Cannot read {path}: {reason}. The checkpoint may be whole: mend this, then try again.")
        cause = cause.__cause__ or cause.__context__
    return Damaged(text)


def make_record(leaves: tree.Leaves, progress: Mapping) -> dict:
    """Returns the record that is stored beside the leaves of a checkpoint.

    Args:
      leaves: Path -> NumPy array.
      progress: The caller's own mapping.

    Returns:
      {'leaves': name -> [shape, dtype, crc32], 'progress': ..., 'crc': checksum of the two}.

    Raises:
      ValueError: Two leaves have the same name, which is possible if keys have '/' in them.
    """
    marks = {tree.name(path): tree.fingerprint(leaf) for path, leaf in leaves.items()}
    if len(marks) < len(leaves):
        raise ValueError("Two leaves have the same name; use keys without '/'.")
    record = {"leaves": marks, "progress": plain(progress, finite=False)}
    return {**record, "crc": _crc(record)}


def _crc(record: Mapping) -> int:
    return zlib.crc32(json.dumps({part: record[part] for part in ("leaves", "progress")}, sort_keys=True).encode())


def check_record(record: Mapping, what: str) -> None:
    """Raises Damaged if a record is not as it was made; `what` is what the message calls it."""
    if record["crc"] != _crc(record):
        raise Damaged(f"{what} does not match its checksum")


def check_leaves(leaves: Mapping[str, np.ndarray], table: Mapping[str, list]) -> None:
    """Raises Damaged if a leaf is missing or is not the one that was stored.

    Args:
      leaves: Name -> array that was read. orbax returns other numbers for a flipped bit, without an error.
      table: Name -> [shape, dtype, crc32] of the leaves that are wanted.
    """
    for name, expected in table.items():
        leaf = leaves.get(name)
        if leaf is None or tree.fingerprint(leaf) != expected:
            raise Damaged(f"leaf '{name}' does not match its checksum")
