"""SIGINT and SIGTERM: noted while a run trains, obeyed after it was saved."""

import signal
import threading
from types import FrameType
from typing import NoReturn

from kdjax.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context in which the first signal only sets `signum`; a second one acts as it would without kdjax.

    Attributes:
      signum: Number of the signal that came, 0 before one.
    """

    def __init__(self):
        self.signum = 0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signum = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave(self, message: str) -> NoReturn:
        """Raises `Interrupted` with the signal that came."""
        raise Interrupted(self.signum, message)
