"""Writes small files atomically, and turns errors of the operating system into one-line messages."""

import contextlib
import errno
import glob
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdjax.errors import UserError

_HOST = os.uname().nodename

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


def write_atomic(
    path: pathlib.Path, content: str | bytes | Iterable[bytes | memoryview], flag: str = "--store"
) -> None:
    """Writes a file atomically: other processes see the old content or the new one, even if this one is killed.

    When it returns, the file is on disk under its name. What a killed process left of the same file is removed.

    Args:
      path: Path of the file. Its folder is made if necessary.
      content: New content of the file, or its parts; text is encoded as UTF-8.
      flag: Command-line flag that chose the path, for messages.

    Raises:
      UserError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.tmp")
    content = content.encode() if isinstance(content, str) else content
    with disk_errors(path, flag=flag):
        try:
            make_folder(path.parent)
            remove_leftovers(path.parent, path.name)
            write_parts(temporary, [content] if isinstance(content, bytes) else content)
            os.replace(temporary, path)
            sync(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_parts(path: pathlib.Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file and waits until its content is on disk."""
    with open(path, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: pathlib.Path, line: str) -> None:
    """Adds a line to a file, which may be only in the memory of the system when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder and those above it, and waits until they are on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on disk. Some file systems cannot do this for a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: pathlib.Path, name: str = "") -> None:
    """Removes what killed processes left of files that they were writing atomically.

    Args:
      folder: Folder of the files; it need not exist.
      name: Name of one file, of which only leftovers of this machine's processes are removed; '' for all files of a
        folder that this process has locked.
    """
    for path in folder.glob(f"{glob.escape(name)}.{glob.escape(_HOST)}.*.tmp" if name else "*.tmp"):
        pid = path.name.removesuffix(".tmp").rpartition(".")[2]
        if not name or (pid.isdecimal() and not is_alive(int(pid))):
            with contextlib.suppress(OSError):
                path.unlink()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's process
    return True


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
        except (ValueError, RecursionError) as error:
            what = first_line(error)
            raise UserError(f"{path} is damaged ({what}); delete its folder and train the run again.") from error
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
