"""How long jax compiles: time that an epoch's images per second leave out."""

import contextlib
import threading
import time
from collections.abc import Iterator

from jax import monitoring

COMPILING = "/jax/core/compile/"  # of tracing, of lowering, and of compiling or reading from the cache of programs


class CompileTime:
    """The time in which this thread compiled.

    Attributes:
      seconds: Seconds so far. Events within one another, such as the tracing of a function within another one, count
        once.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread = threading.get_ident()
        self._intervals: list[tuple[float, float]] = []  # apart, in their order

    def note(self, event: str, seconds: float, **_: object) -> None:
        """Counts an event of jax that has just ended.

        Args:
          event: Its name.
          seconds: How long it took.
        """
        if not event.startswith(COMPILING) or threading.get_ident() != self._thread:
            return
        end = time.perf_counter()
        begin = end - seconds
        while self._intervals and self._intervals[-1][1] > begin:  # an event that was within this one
            begin = min(begin, self._intervals.pop()[0])
        self._intervals.append((begin, end))
        self.seconds = sum(end - begin for begin, end in self._intervals)


@contextlib.contextmanager
def compile_time() -> Iterator[CompileTime]:
    """Counts the time in which this thread compiles while the context is open."""
    found = CompileTime()
    monitoring.register_event_duration_secs_listener(found.note)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(found.note)
