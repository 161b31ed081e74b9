"""SIGINT and SIGTERM while a run trains: noted, and obeyed after it was saved.

Several processes must stop after the same step. SIGTERM is then noted by jax's preemption service, which lets all of
them agree on one; SIGINT is passed on to it.
"""

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from kdjax import signals
from kdjax.errors import Interrupted
from kdjax.training import processes


class StopSignals:
    """Context in which the first signal only sets `signum`; a second one acts as it would without kdjax.

    Attributes:
      signum: Number of the signal that came, 0 before one.
      unsaved: Whether there is progress that is not on disk; while there is none, a command ends at once.
    """

    def __init__(self):
        self.signum = 0
        self.unsaved = False
        self._before = {}
        self._point = processes.StopPoint()
        self._saver: signals.Saver = _Passing() if processes.count() > 1 else self

    def __enter__(self):
        watch = signals.watch()
        if watch is not None:
            watch.saver = self._saver
        elif threading.current_thread() is threading.main_thread():  # a notebook, which has no command's watch
            self._before = {number: signal.signal(number, self._note) for number in signals.SIGNALS}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._restore()
        watch = signals.watch()
        if watch is not None:
            watch.saver = None
            if watch.signum and kind is None:  # it came after the last look at `signum`
                signals.end(watch.signum)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signum = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ask(self) -> None:
        """Sets `signum` if several processes stop here; to be called after each dispatch, in all of them."""
        if self._point.reached():
            interrupted = signal.SIGINT in processes.gather(self._saver.signum)
            self.signum = signal.SIGINT if interrupted else signal.SIGTERM

    def leave(self, message: str) -> NoReturn:
        """Raises `Interrupted` with the signal that came."""
        raise Interrupted(self.signum, message)


class _Passing:
    """Stands for a run that several processes train: it passes a signal on to jax, which lets all stop at one step."""

    unsaved = True  # this process must not leave the others behind

    def __init__(self):
        self._signum = 0

    @property
    def signum(self) -> int:
        """Number of the signal that this process passed on, 0 before one."""
        return self._signum

    @signum.setter
    def signum(self, number: int) -> None:
        self._signum = number
        os.kill(os.getpid(), signal.SIGTERM)
