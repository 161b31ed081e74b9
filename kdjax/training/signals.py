"""SIGINT and SIGTERM: noted while a run trains, obeyed after it was saved."""

import signal
import threading

from kdjax.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context in which the first signal sets `signum`; a second one acts as it would without kdjax."""

    def __init__(self):
        self.signum = 0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, frame):
        del frame
        self.signum = number
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave(self, message: str) -> None:
        """Raises `Interrupted` with the signal that came."""
        raise Interrupted(self.signum, message)
