"""Writes small files atomically, and turns errors of the operating system into one-line messages."""

import contextlib
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kdjax.errors import UserError

ADVICE = {
    errno.ENOSPC: "free some space, or choose another --store",
    errno.EDQUOT: "free some space, or choose another --store",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another --store",
    errno.EROFS: "choose a --store that can be written to",
    errno.EACCES: "change its permissions, or choose another --store",
    errno.EPERM: "change its permissions, or choose another --store",
    errno.ENOTDIR: "there is a file where a folder should be: move it, or choose another --store",
    errno.EEXIST: "there is a file where a folder should be: move it, or choose another --store",
    errno.EISDIR: "there is a folder where a file should be: move it, or choose another --store",
    errno.ENAMETOOLONG: "choose a shorter --run",
}


def disk_error(path: os.PathLike | str, error: OSError, doing: str = "write", flag: str = "--store") -> UserError:
    """Returns the error that is shown for an OSError, with advice for its errno.

    Args:
      path: Path of the file.
      error: Error of the operating system.
      doing: What could not be done, such as 'write' or 'read'.
      flag: Command-line flag that chose the path, for the advice.
    """
    advice = ADVICE.get(error.errno or 0, "check the disk, or choose another --store").replace("--store", flag)
    return UserError(f"Cannot {doing} {path}: {error.strerror or error}; {advice}.")


def write_error(path: os.PathLike | str, error: Exception) -> UserError:
    """Returns the error that is shown for an exception of orbax.

    The errno is in the text of the exception, or in the exceptions that caused it.
    """
    cause = error
    while cause is not None:
        for code in ADVICE:
            if getattr(cause, "errno", None) == code or os.strerror(code) in str(cause):
                return disk_error(path, OSError(code, os.strerror(code)))
        cause = cause.__cause__ or cause.__context__
    return UserError(f"Cannot write {path}: {first_line(error)}; check the disk, or choose another --store.")


def first_line(error: Exception, width: int = 160) -> str:
    """Returns the text of an exception on one line, cut to `width` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."


@contextlib.contextmanager
def disk_errors(path: os.PathLike | str, doing: str = "write", flag: str = "--store") -> Iterator[None]:
    """Turns an OSError inside the block into a UserError; the arguments are those of `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error, doing, flag) from error


def write_atomic(path: pathlib.Path, content: str | bytes, flag: str = "--store") -> None:
    """Writes a file atomically: other processes see the old content or the new one, even if this one is killed.

    Args:
      path: Path of the file. Its folder is made if necessary.
      content: New content of the file; text is encoded as UTF-8.
      flag: Command-line flag that chose the path, for messages.

    Raises:
      UserError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, flag=flag):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: pathlib.Path, value: Mapping, flag: str = "--store") -> None:
    """Writes a mapping atomically as indented JSON.

    Args:
      path: Path of the file.
      value: Mapping that `plain` accepts.
      flag: Command-line flag that chose the path, for messages.
    """
    write_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n", flag)


def read_json(path: pathlib.Path) -> dict | None:
    """Returns the mapping in a JSON file, or None if there is no such file.

    Raises:
      UserError: The file cannot be read or is damaged.
    """
    with disk_errors(path, "read"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); delete its folder and train the run again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (not a mapping); delete its folder and train the run again.")
    return value


def plain(value: Any, finite: bool = True) -> Any:
    """Returns `value` with the types of JSON: scalars of NumPy and jax as numbers, tuples as lists, keys as strings.

    Args:
      value: Nested mappings and sequences of scalars.
      finite: Whether nan and inf, which JSON lacks, become None. If False, they stay, and only Python's json can read
        them.

    Raises:
      TypeError: The value has an array or another object that JSON cannot represent.
    """
    if hasattr(value, "items"):
        return {str(name): plain(item, finite) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, finite) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):  # includes np.float64
        return None if finite and not math.isfinite(value) else float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), finite)
    raise TypeError(f"JSON cannot represent {type(value).__name__}: {value!r}")
