"""SIGINT and SIGTERM of a command: noted when they come, and obeyed without an exception from their handler.

Python runs a handler in the main thread, between two steps of the program. An exception that it raises is lost in a
callback of the garbage collector, and the handler itself waits for the end of a long compilation. Therefore the handler
does nothing: the system also writes the signal into a pipe, and a thread that reads it ends the process at once where
there is nothing to save. A run that is being trained gets GRACE seconds to save itself. All that is on disk is complete
at any moment, so that nothing is lost by ending a process.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn, Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 25.0  # seconds that a run has to save itself; schedulers kill 30 seconds after SIGTERM
INSISTENCE = 1.0  # seconds after which a second signal is meant to end the process; some senders send two at once
SAID_TO = 2  # file descriptor for the last line; another one where C++ writes its own lines to this one
STOPPED = "stopped at once, without saving; everything that was saved before is complete."


class Saver(Protocol):
    """A run that is being trained.

    Attributes:
      signum: Number of the signal that came, 0 before one.
      unsaved: Whether it has made progress that is not on disk.
    """

    signum: int
    unsaved: bool


class Watch:
    """Waits for signals in a thread, from `start` to `stop`.

    Attributes:
      saver: The run that is being trained, None where there is nothing to save.
      signum: Number of the first signal that came, 0 before one.
    """

    def __init__(self):
        self.saver: Saver | None = None
        self.signum = 0
        self._since = 0.0
        self._before = {}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def start(self) -> None:
        """Takes over the signals; must be called in the main thread."""
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _ignore) for number in SIGNALS}
        self._thread = threading.Thread(target=self._read, name="kdjax-signals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Obeys a signal that has come and not been read, and gives the signals back to those who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)  # which ends the thread after what is left in the pipe
        self._thread.join()

    def _read(self) -> None:
        while True:
            left = max(0.0, self._since + GRACE - time.monotonic()) if self.signum else None
            ready, _, _ = select.select([self._reader], [], [], left)
            if not ready:
                end(self.signum, f"could not be saved within {GRACE:.0f} s; the checkpoint before is complete.")
            content = os.read(self._reader, 1)
            if not content:
                return os.close(self._reader)
            if content[0] in SIGNALS:
                self._obey(content[0])

    def _obey(self, number: int) -> None:
        now = time.monotonic()
        if self.signum:
            if now - self._since > INSISTENCE:
                end(number)
            return
        self.signum, self._since = number, now
        saver = self.saver
        if saver is None or not saver.unsaved:
            end(number)
        saver.signum = number


def _ignore(number: int, frame: object) -> None:
    """Stands for the handler that makes the system write into the pipe."""


def end(number: int, message: str = STOPPED) -> NoReturn:
    """Ends the process and its workers with the exit code of a signal; may be called in any thread."""
    with contextlib.suppress(OSError):
        os.write(SAID_TO, f"kdjax: {message}\n".encode())
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    os._exit(128 + number)


_WATCH: Watch | None = None


def watch() -> Watch | None:
    """Returns the watch of this process, None where nobody started one, as in a notebook."""
    return _WATCH


def start() -> None:
    """Starts the watch of this process, if there is none and this is its main thread."""
    global _WATCH
    if _WATCH is None and threading.current_thread() is threading.main_thread():
        _WATCH = Watch()
        _WATCH.start()


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Has a watch inside the block: the one of the process, or one of its own."""
    global _WATCH
    own = _WATCH is None
    start()
    try:
        yield
    finally:
        if own and _WATCH is not None:
            _WATCH.stop()
            _WATCH = None


def _forget() -> None:
    """Lets a forked worker end by SIGTERM and leave SIGINT, which a terminal sends to all, to its parent."""
    global _WATCH
    if _WATCH is not None:
        _WATCH = None
        with contextlib.suppress(ValueError):  # only the main thread may do this
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_forget)
