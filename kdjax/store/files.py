"""Small files that are never seen half-written, and what the operating system says turned into one line."""

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
    errno.EACCES: "mend its permissions, or choose another --store",
    errno.EPERM: "mend its permissions, or choose another --store",
    errno.ENOTDIR: "a file stands where a folder should be: move it, or choose another --store",
    errno.EEXIST: "a file stands where a folder should be: move it, or choose another --store",
    errno.EISDIR: "a folder stands where a file should be: move it, or choose another --store",
    errno.ENAMETOOLONG: "choose a shorter --run",
}


def disk_error(path: os.PathLike | str, error: OSError, doing: str = "write", flag: str = "--store") -> UserError:
    """Returns the one line for what went wrong with `path`, which `flag` chose, with advice that fits its errno."""
    advice = ADVICE.get(error.errno, "check the disk, or choose another --store").replace("--store", flag)
    return UserError(f"Cannot {doing} {path}: {error.strerror or error}; {advice}.")


def write_error(path: os.PathLike | str, error: Exception) -> UserError:
    """Returns the one line for an exception of orbax, which buries the errno in text or in what it was raised from."""
    cause = error
    while cause is not None:
        for code in ADVICE:
            if getattr(cause, "errno", None) == code or os.strerror(code) in str(cause):
                return disk_error(path, OSError(code, os.strerror(code)))
        cause = cause.__cause__ or cause.__context__
    return UserError(f"Cannot write {path}: {first_line(error)}; check the disk, or choose another --store.")


def first_line(error: Exception, width: int = 160) -> str:
    """Returns the beginning of an exception's text, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."


@contextlib.contextmanager
def disk_errors(path: os.PathLike | str, doing: str = "write", flag: str = "--store") -> Iterator[None]:
    """Turns an OSError inside the block into a UserError that names `path`, and the flag that chose it."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error, doing, flag) from error


def write_atomic(path: pathlib.Path, text: str, flag: str = "--store") -> None:
    """Replaces a file so that a reader, or the next start after a kill, sees the old text or the new, never a part.

    Args:
      path: of the file.
      text: all of it.
      flag: that chose where it lies, for the message.

    Raises:
      UserError: the disk is full, read-only or in the way.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, flag=flag):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: pathlib.Path, value: Mapping, flag: str = "--store") -> None:
    """Writes a mapping atomically as indented JSON; `flag` is the one that chose the path, for messages."""
    write_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n", flag)


def read_json(path: pathlib.Path) -> dict | None:
    """Returns the mapping in a JSON file, or None where there is no such file.

    Raises:
      UserError: the file cannot be read or is damaged.
    """
    with disk_errors(path, "read"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); delete its folder to train that run anew.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (not a mapping); delete its folder to train that run anew.")
    return value


def plain(value: Any, finite: bool = True) -> Any:
    """Returns `value` in JSON's own types: scalars of NumPy and jax as numbers, tuples as lists, keys as strings.

    Args:
      value: nested mappings and sequences of scalars.
      finite: None in place of nan and inf, which JSON lacks; False keeps them (Python's json reads them back).

    Raises:
      TypeError: an array, or an object that JSON has no word for.
    """
    if hasattr(value, "items"):
        return {str(name): plain(item, finite) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, finite) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):  # np.float64 is one too
        return None if finite and not math.isfinite(value) else float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), finite)
    raise TypeError(f"JSON has no word for {type(value).__name__}: {value!r}")
