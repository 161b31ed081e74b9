"""Checkpoints over orbax: asynchronous, latest and best kept, every leaf checked on the way back."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.store import tree
from kdjax.store.files import disk_errors, write_error
from kdjax.store.reading import PROGRESS, STATE, Damaged, first_good, make_record, read_leaves, read_record

VARIABLES = ("train/params/", "train/batch_stats/")  # where a network's variables lie in what the loop saves

# orbax logs every step it takes, and pages of dump on an error; what a user needs of it is said here in one line.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname.replace("\\", "/"))
# Of several leaves that failed orbax asks for one, and the others' errors are told when they are collected.
logging.getLogger("asyncio").addFilter(lambda record: "/orbax/" not in record.getMessage().replace("\\", "/"))


def _without_late_reports(hook: Callable) -> Callable:
    """After a first leaf failed, those still being read or written report to an event loop that is gone."""
    return lambda args: None if "Event loop is closed" in str(args.exc_value) else hook(args)


sys.unraisablehook = _without_late_reports(sys.unraisablehook)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: holds one folder a step.
      owner: the run's name, for messages.
    """

    def __init__(self, folder: pathlib.Path, owner: str):
        self._folder = folder
        self._owner = owner
        self._manager: ocp.CheckpointManager | None = None
        self._best: int | None = None

    def save(self, step: int, state: Any, progress: Mapping, *, keep_best: int | None = None) -> None:
        """Writes a checkpoint in the background; `state` may be donated or overwritten as soon as this returns.

        Checkpoints of this step and later ones, left by a run that went back to an earlier one, are replaced.

        Args:
          step: updates made so far.
          state: pytree of jax or NumPy arrays and numbers; goes to disk with its exact dtypes.
          progress: JSON-able; floats come back to the bit.
          keep_best: the step to keep besides the newest; None to keep the newest only.

        Raises:
          UserError: this write, or the one before it, failed: full or read-only disk.
        """
        leaves = tree.host_copy(state)
        record = make_record(leaves, progress)
        filled = {path: leaf for path, leaf in leaves.items() if leaf.size}  # orbax refuses arrays without elements
        items = {
            STATE: ocp.args.PyTreeSave(traverse_util.unflatten_dict(filled)),
            PROGRESS: ocp.args.JsonSave(record),
        }
        self._best = keep_best
        with self._write_errors():
            manager = self._open()
            if not self._is_saved(step, record):
                self._clear_from(step)
                manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        if self._manager is not None:
            with self._write_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends orbax's threads; saving again opens them anew."""
        try:
            self.wait()
        finally:
            self._abandon()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(lambda: self._best),
                cleanup_tmp_directories=True,  # what a kill left half-written
                lightweight_initialize=True,  # else a damaged step keeps the manager from opening
                save_root_metadata=False,
                # Else the writers wait minutes for a folder that the disk refused, past the end of main.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
            self._manager = ocp.CheckpointManager(self._folder.absolute(), options=options)
        return self._manager

    def _is_saved(self, step: int, record: dict) -> bool:
        """Whether the newest checkpoint is this very one, as when a signal comes right after an epoch's save."""
        if self._manager.latest_step() != step:
            return False
        self._manager.wait_until_finished()
        path = self._folder / str(step)
        with contextlib.suppress(Damaged):
            return read_record(path) == record and bool(read_leaves(path, record["leaves"]))
        return False

    def _clear_from(self, step: int) -> None:
        for old in self._manager.all_steps():
            if old >= step:
                self._manager.wait_until_finished()
                self._manager.delete(old)

    def _abandon(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # its errors were raised by wait, or are being raised
                manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise their own kinds, from threads of their own
            self._abandon()
            raise write_error(self._folder, error) from error

    def steps(self) -> list[int]:
        """Returns the steps on disk, ascending; half-written ones do not count."""
        with disk_errors(self._folder, "read"):
            if not self._folder.is_dir():
                return []
            return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def restore(self, like: Any, which: str | int = "last") -> tuple[Any, dict, int]:
        """Reads a checkpoint back, to the bit.

        Args:
          like: pytree of arrays or ShapeDtypeStructs: the structure, shapes and dtypes wanted.
          which: 'last' (the newest that is whole; warns of damaged ones), 'best', or a step.

        Returns:
          (state with NumPy leaves in the structure of `like`, progress, step).

        Raises:
          UserError: there is none, it is damaged, or its leaves are not those of `like`.
        """
        wanted = tree.flatten(like)

        def load(path):
            record = read_record(path)
            tree.check_same(wanted, record["leaves"], f"Checkpoint {path}")
            return read_leaves(path, record["leaves"]), record["progress"]

        (leaves, progress), step = first_good(self._folder, self._candidates(which), load)
        return tree.rebuild(like, leaves), progress, step

    def restore_variables(self, which: str | int = "last") -> tuple[dict, int]:
        """Reads a network's variables alone, whatever else was saved with them.

        Args:
          which: as in `restore`.

        Returns:
          ({'params': ..., 'batch_stats': ...} as nested dicts of NumPy arrays, {} where a network has none; step).

        Raises:
          UserError: there is none, or it is damaged.
        """

        def load(path):
            table = read_record(path)["leaves"]
            return read_leaves(path, {leaf: table[leaf] for leaf in table if leaf.startswith(VARIABLES)})

        leaves, step = first_good(self._folder, self._candidates(which), load)
        nested = traverse_util.unflatten_dict({path[1:]: leaf for path, leaf in leaves.items()})
        return {"params": {}, "batch_stats": {}, **nested}, step

    def _candidates(self, which: str | int) -> list[int]:
        """Returns the steps to try, in order."""
        steps = self.steps()
        if not steps:
            raise UserError(f"Run '{self._owner}' has no checkpoint in {self._folder}; train it first.")
        if which == "last":
            return steps[::-1]
        step = self._best_step(steps) if which == "best" else which
        if str(step) not in map(str, steps):
            there = ", ".join(map(str, steps))
            raise UserError(f"Run '{self._owner}' has no checkpoint '{step}'; ask for 'last' or one of: {there}.")
        return [int(step)]

    def _best_step(self, steps: list[int]) -> int:
        record, _ = first_good(self._folder, steps[::-1], read_record)
        best = record["progress"].get("best") or {}
        if best.get("step") is None:
            there = ", ".join(map(str, steps))
            raise UserError(f"Run '{self._owner}' keeps no best checkpoint; ask for 'last' or one of: {there}.")
        return best["step"]


class _LatestAndBest:
    """What orbax keeps: the newest step, and the best as the caller counts it (its `best_fn` deletes the newest)."""

    def __init__(self, best: Callable[[], int | None]):
        self._best = best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        newest = max((info.step for info in checkpoints), default=None)
        return [info.step in (newest, self._best()) for info in checkpoints]
