"""A store that several processes see as one: process 0 reads and writes it, and tells the others what it found.

So the store need not be on a disk that all hosts share, no process ever sees an older state of it than another, and a
mistake is raised in all of them.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from kdjax.store import Run, Store
from kdjax.training import processes


def shared(store: Store) -> Store:
    """Returns the store as all processes share it: itself if there is one process."""
    return store if processes.count() == 1 or isinstance(store, SharedStore) else SharedStore(store)


def _asked(name: str) -> Callable:
    """Returns a method that process 0 calls on the stored object, and whose result or error all of them get."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return processes.by_writer(lambda: getattr(self.stored, name)(*args, **kwargs))

    return call


def _read(name: str) -> property:
    """Returns a property that process 0 reads for all."""
    return property(lambda self: processes.by_writer(lambda: getattr(self.stored, name)))


class SharedRun:
    """A run with the methods of `kdjax.store.Run`, for all processes.

    Attributes:
      stored: The run, which process 0 alone touches.
      name: Name of the run.
      path: Path of its folder on process 0.
      trust: Code that is imported if the manifest names it.
    """

    manifest, result, is_locked = _read("manifest"), _read("result"), _read("is_locked")
    begin, amend, discard_if_empty = _asked("begin"), _asked("amend"), _asked("discard_if_empty")
    refuse_without_manifest, check_checkpoints = _asked("refuse_without_manifest"), _asked("check_checkpoints")
    check_content, note_saved = _asked("check_content"), _asked("note_saved")
    metrics, append_metrics, cut_metrics = _asked("metrics"), _asked("append_metrics"), _asked("cut_metrics")
    append_steps, logged_steps, cut_steps = _asked("append_steps"), _asked("logged_steps"), _asked("cut_steps")
    write_result, steps = _asked("write_result"), _asked("steps")
    save, save_final, wait, close = _asked("save"), _asked("save_final"), _asked("wait"), _asked("close")
    restore, restore_variables = _asked("restore"), _asked("restore_variables")

    def __init__(self, stored: Run):
        self.stored, self.name, self.path, self.trust = stored, stored.name, stored.path, stored.trust

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run for all processes; see `Run.lock`."""
        with contextlib.ExitStack() as stack:
            processes.by_writer(lambda: stack.enter_context(self.stored.lock()))
            yield


class SharedStore(Store):
    """A store for all processes; `run` and `find` return runs that they share."""

    def __init__(self, stored: Store):
        super().__init__(stored.root)
        self.stored, self.trust = stored, stored.trust

    def run(self, name: str) -> Run:
        """See `Store.run`."""
        processes.by_writer(lambda: bool(self.stored.run(name)))
        return cast(Run, SharedRun(Run(name, self.root / name, self.trust)))

    def find(self, name: str) -> Run:
        """See `Store.find`."""
        processes.by_writer(lambda: bool(self.stored.find(name)))
        return cast(Run, SharedRun(Run(name, self.root / name, self.trust)))

    def runs(self) -> list[str]:
        """See `Store.runs`."""
        return processes.by_writer(self.stored.runs)

    def write_text(self, name: str, text: str) -> pathlib.Path:
        """See `Store.write_text`."""
        return processes.by_writer(lambda: self.stored.write_text(name, text))
