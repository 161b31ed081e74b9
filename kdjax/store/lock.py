"""The lock of a run: only one process trains it, on this machine or on another one that sees the same folder.

The operating system's lock is on the folder of the run, so that it holds even if the file `lock` is removed, and it
ends with its process in any way. Some file systems do not tell other machines of it. The file `lock` says who holds it,
and its holder touches it every few seconds: another machine believes it as long as that goes on.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Iterator

from absl import logging

from kdjax.errors import UserError
from kdjax.store.files import disk_errors, is_alive, make_folder

FILE = "lock"
BEAT = 5.0  # seconds between two touches of the file
SILENT = 25.0  # seconds without a touch after which the holder on another machine is taken for dead

_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EISDIR)
_ADVICE = "wait for it, stop it, or choose another --run."


def host() -> str:
    """Returns the name of this machine."""
    return os.uname().nodename


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str) -> Iterator[None]:
    """Locks a run for this process.

    Args:
      folder: Folder of the run; it is made if necessary.
      name: Name of the run, for messages.

    Raises:
      UserError: The run is locked already, by this process, another one, or one on another machine.
    """
    path = folder / FILE
    with contextlib.ExitStack() as stack:
        with disk_errors(path):
            make_folder(folder)
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            holder = path.read_text(encoding="utf-8", errors="replace").strip()
            known = [_take(one, name, holder) for one in (descriptor, file.fileno())]
        _wait_for_other_machine(path, name, holder, locks=any(known))
        with disk_errors(path):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {host()}")
            file.flush()
        stack.callback(_empty, path)
        stack.enter_context(_PULSE.beating(path))
        yield


def is_locked(folder: pathlib.Path) -> bool:
    """Whether a process holds the lock of a run: one of this machine, or one elsewhere that touched it lately."""
    path = folder / FILE
    for one in (folder, path):
        try:
            descriptor = os.open(one, os.O_RDONLY)
        except OSError:  # there is no such run, or nobody has locked it yet
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # this file system has no locks
            pass
        finally:
            os.close(descriptor)
    with contextlib.suppress(OSError):
        holder = path.read_text(encoding="utf-8", errors="replace").strip()
        return bool(holder) and not holder.endswith(f" on {host()}") and time.time() - path.stat().st_mtime < SILENT
    return False


def _take(descriptor: int, name: str, holder: str) -> bool:
    """Takes the operating system's lock; returns whether the file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refusal(name, holder or "pid unknown") from error
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True


def _refusal(name: str, holder: str) -> UserError:
    return UserError(f"Run '{name}' is locked, another process is training it ({holder}); {_ADVICE}")


def _wait_for_other_machine(path: pathlib.Path, name: str, holder: str, *, locks: bool) -> None:
    """Refuses a run whose holder is alive although the operating system's lock was free.

    A holder on another machine is alive if it touches the file while we wait; the clocks are not compared.
    """
    found = re.fullmatch(r"pid (\d+) on (.+)", holder)
    if found is None:
        return
    if found[2] == host():
        if not locks and is_alive(int(found[1])) and int(found[1]) != os.getpid():
            raise _refusal(name, holder)
        if not locks:
            line = "%s: this file system has no locks; make sure that only one process trains the run."
            logging.warning(line, path.parent)
        return
    print(
        f"run '{name}' was locked by {holder}; waiting up to {SILENT:.0f} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    first, deadline = _touched(path), time.monotonic() + SILENT
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT / 10))
        if _touched(path) != first:
            raise _refusal(name, holder)


def _touched(path: pathlib.Path) -> int:
    try:
        with open(path, "rb") as file:  # opening makes a network's file system look at the file again
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _empty(path: pathlib.Path) -> None:
    """Says that the run is free, if the file is still there."""
    with contextlib.suppress(OSError):
        os.truncate(path, 0)


class _Pulse:
    """Touches the files of all locks that this process holds, in one thread."""

    def __init__(self):
        self._paths: set[pathlib.Path] = set()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def beating(self, path: pathlib.Path) -> Iterator[None]:
        """Touches a file every few seconds inside the block."""
        with self._change:
            self._paths.add(path)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="kdjax-locks", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._change:
                self._paths.discard(path)
                self._change.notify()

    def _beat(self) -> None:
        with self._change:
            while self._paths:
                self._change.wait(BEAT)
                for path in self._paths:
                    with contextlib.suppress(OSError):
                        os.utime(path)
            self._thread = None


_PULSE = _Pulse()
