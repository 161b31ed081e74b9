"""Checkpoints of a run, written by orbax: saved in the background, every leaf checked when it is read."""

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

VARIABLES = ("train/params/", "train/batch_stats/")  # prefixes of a network's variables in a training checkpoint

# orbax logs each of its steps, and pages of text for an error. kdjax reports errors itself, in one line.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname.replace("\\", "/"))
# If several leaves fail, orbax handles the error of one; asyncio would print the others when they are collected.
logging.getLogger("asyncio").addFilter(lambda record: "/orbax/" not in record.getMessage().replace("\\", "/"))


def _without_late_reports(hook: Callable) -> Callable:
    """Silences leaves that are still being read or written after one failed, and report to a closed event loop."""
    return lambda args: None if "Event loop is closed" in str(args.exc_value) else hook(args)


sys.unraisablehook = _without_late_reports(sys.unraisablehook)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: Folder of the checkpoints; each step has a folder of its own in it.
      owner: Name of the run, for messages.
    """

    def __init__(self, folder: pathlib.Path, owner: str):
        self._folder = folder
        self._owner = owner
        self._manager: ocp.CheckpointManager | None = None
        self._best: int | None = None

    def save(self, step: int, state: Any, progress: Mapping, *, keep_best: int | None = None) -> None:
        """Writes a checkpoint in the background; `state` may be donated or overwritten as soon as this returns.

        Deletes older checkpoints of this step and of later steps, which exist if the run was resumed from an earlier
        step.

        Args:
          step: Number of updates made so far.
          state: Pytree of jax or NumPy arrays and numbers; they are stored with their exact dtypes.
          progress: Mapping that JSON can represent; floats are restored exactly.
          keep_best: Step of the best checkpoint, which is kept besides the newest one; None to keep the newest only.

        Raises:
          UserError: This write or the one before it failed, because the disk is full or read-only, for example.
        """
        leaves = tree.host_copy(state)
        record = make_record(leaves, progress)
        filled = {path: leaf for path, leaf in leaves.items() if leaf.size}  # orbax refuses empty arrays
        items = {
            STATE: ocp.args.PyTreeSave(traverse_util.unflatten_dict(filled)),
            PROGRESS: ocp.args.JsonSave(record),
        }
        self._best = keep_best
        with self._write_errors():
            manager = self._open()
            if not self._is_saved(manager, step, record):
                self._clear_from(manager, step)
                manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits until everything that was saved is on disk.

        Raises:
          UserError: It could not be written.
        """
        if self._manager is not None:
            with self._write_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads of orbax; another save starts new ones."""
        try:
            self.wait()
        finally:
            self._abandon()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(lambda: self._best),
                cleanup_tmp_directories=True,  # deletes checkpoints that a killed process left unfinished
                lightweight_initialize=True,  # otherwise a damaged step prevents the manager from opening
                save_root_metadata=False,
                # Otherwise writers wait for minutes for a folder that could not be made, even after main has ended.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
            self._manager = ocp.CheckpointManager(self._folder.absolute(), options=options)
        return self._manager

    def _is_saved(self, manager: ocp.CheckpointManager, step: int, record: dict) -> bool:
        """Whether the newest checkpoint is the same, as it is if a signal comes right after an epoch was saved."""
        if manager.latest_step() != step:
            return False
        manager.wait_until_finished()
        path = self._folder / str(step)
        with contextlib.suppress(Damaged):
            return read_record(path) == record and bool(read_leaves(path, record["leaves"]))
        return False

    def _clear_from(self, manager: ocp.CheckpointManager, step: int) -> None:
        for old in manager.all_steps():
            if old >= step:
                manager.wait_until_finished()
                manager.delete(old)

    def _abandon(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # wait has raised its errors, or the caller is about to
                manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise types of their own, from other threads
            self._abandon()
            raise write_error(self._folder, error) from error

    def steps(self) -> list[int]:
        """Returns the steps that are on disk completely, in ascending order."""
        with disk_errors(self._folder, "read"):
            if not self._folder.is_dir():
                return []
            return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def restore(self, like: Any, which: str | int = "last") -> tuple[Any, dict, int]:
        """Reads a checkpoint exactly as it was saved.

        Args:
          like: Pytree of arrays or ShapeDtypeStructs with the structure, shapes and dtypes of the state.
          which: 'last' (the newest one that is not damaged; logs a warning for damaged ones), 'best', or a step.

        Returns:
          (state with NumPy leaves in the structure of `like`, progress, step).

        Raises:
          UserError: There is no such checkpoint, it is damaged, or its leaves are not those of `like`.
        """
        wanted = tree.flatten(like)

        def load(path):
            record = read_record(path)
            tree.check_same(wanted, record["leaves"], f"Checkpoint {path}")
            return read_leaves(path, record["leaves"]), record["progress"]

        (leaves, progress), step = first_good(self._folder, self._candidates(which), load)
        return tree.rebuild(like, leaves), progress, step

    def restore_variables(self, which: str | int = "last") -> tuple[dict, int]:
        """Reads only the variables of the network in a checkpoint.

        Args:
          which: 'last', 'best' or a step, as for `restore`.

        Returns:
          ({'params': ..., 'batch_stats': ...}, step). The variables are nested dicts of NumPy arrays; 'batch_stats'
          is {} if the network has none.

        Raises:
          UserError: There is no such checkpoint, or it is damaged.
        """

        def load(path):
            table = read_record(path)["leaves"]
            return read_leaves(path, {leaf: table[leaf] for leaf in table if leaf.startswith(VARIABLES)})

        leaves, step = first_good(self._folder, self._candidates(which), load)
        nested = traverse_util.unflatten_dict({path[1:]: leaf for path, leaf in leaves.items()})
        return {"params": {}, "batch_stats": {}, **nested}, step

    def _candidates(self, which: str | int) -> list[int]:
        """Returns the steps to try, the first one first."""
        steps = self.steps()
        if not steps:
            raise UserError(f"Run '{self._owner}' has no checkpoint in {self._folder}; train it first.")
        if which == "last":
            return steps[::-1]
        step = self._best_step(steps) if which == "best" else which
        if str(step) not in map(str, steps):
            there = ", ".join(map(str, steps))
            raise UserError(f"Run '{self._owner}' has no checkpoint '{step}'; choose 'last' or one of: {there}.")
        return [int(step)]

    def _best_step(self, steps: list[int]) -> int:
        record, _ = first_good(self._folder, steps[::-1], read_record)
        best = record["progress"].get("best") or {}
        if best.get("step") is None:
            there = ", ".join(map(str, steps))
            raise UserError(f"Run '{self._owner}' has no best checkpoint; choose 'last' or one of: {there}.")
        return best["step"]


class _LatestAndBest:
    """Tells orbax to keep the newest step and the best one.

    orbax's own `best_fn` would delete the newest checkpoint.

    Args:
      best: Function that returns the step of the best checkpoint, or None.
    """

    def __init__(self, best: Callable[[], int | None]):
        self._best = best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        newest = max((info.step for info in checkpoints), default=None)
        return [info.step in (newest, self._best()) for info in checkpoints]
