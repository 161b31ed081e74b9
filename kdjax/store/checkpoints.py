"""Checkpoints of a run: every leaf is checked when it is read.

orbax writes those of a run in progress, in the background. When a small run finishes, they are replaced by packed
checkpoints: one file for the last state, and one for the variables of the best one.
"""

import contextlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.store import packed, tree
from kdjax.store.files import disk_errors, make_folder, sync, write_error
from kdjax.store.reading import (
    ONE_PROCESS,
    PROGRESS,
    STATE,
    VARIABLES_ONLY,
    Found,
    find_checkpoints,
    first_good,
    list_checkpoints,
    read_leaves,
    read_record,
)
from kdjax.store.record import Damaged, make_record

PACKED_BYTES = 64 * 2**20  # largest state that is packed; orbax reads and writes larger ones with several threads
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
      folder: Folder of the checkpoints. orbax's are folders in it, named by their step; packed ones are files,
        <step>.safetensors and, of variables only, <step>.variables.safetensors.
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
          keep_best: Step of the best checkpoint, which is kept besides the newest one. Where it is None, or the newest,
            the one before the newest is kept, so that damage to one checkpoint never loses the run.

        Raises:
          UserError: This write or the one before it failed, because the disk is full or read-only, for example.
        """
        leaves = tree.host_copy(state)
        record = make_record(leaves, progress)
        # orbax refuses empty arrays. Keys with '/' become levels, since the record has only the joined names.
        filled = {tree.path(tree.name(path)): leaf for path, leaf in leaves.items() if leaf.size}
        items = {
            STATE: ocp.args.PyTreeSave(traverse_util.unflatten_dict(filled)),
            PROGRESS: ocp.args.JsonSave(record),
        }
        self._best = keep_best
        with self._write_errors():
            manager = self._open()
            if not self._is_saved(manager, step, record):
                self._clear_from(manager, step, keep_best)
                manager.save(step, args=ocp.args.Composite(**items), force=True)

    def save_final(
        self,
        step: int,
        state: Any,
        progress: Mapping,
        *,
        best_step: int | None = None,
        best_variables: Mapping | None = None,
    ) -> None:
        """Writes the checkpoints that a finished run keeps, and deletes all its other checkpoints.

        A state of at most PACKED_BYTES is packed, and only the network's variables are kept of the best checkpoint. A
        larger state is written by orbax, as `save` does, and a best checkpoint that is on disk stays as it is. All is
        on disk when this returns. If the process is killed before, the run can still be resumed or opened.

        Args:
          step: Number of updates made.
          state: Pytree of jax or NumPy arrays and numbers; they are stored with their exact dtypes.
          progress: Mapping that JSON can represent; floats are restored exactly.
          best_step: Step of the best checkpoint, as in progress['best']['step']; None if the run has none.
          best_variables: {'params': ..., 'batch_stats': ...} of the best checkpoint. If None, they are read from the
            checkpoint of `best_step` on disk. They are not needed if `best_step` is `step`.

        Raises:
          UserError: A checkpoint cannot be written, or the best one is missing or damaged.
          ValueError: `best_step` is not the one in `progress`.
        """
        if (progress.get("best") or {}).get("step") != best_step:
            raise ValueError(f"best_step is {best_step}, but progress['best'] is {progress.get('best')}.")
        self.close()
        leaves = tree.host_copy(state)
        small = sum(leaf.nbytes for leaf in leaves.values()) <= PACKED_BYTES
        if best_step not in (None, step) and (small or best_step not in self.steps()):
            self._write_variables(best_step, best_variables, progress)
        if small:
            packed.write_checkpoint(self._folder / f"{step}{packed.SUFFIX}", leaves, progress)
            self._delete_all_except({f"{step}{packed.SUFFIX}", f"{best_step}{VARIABLES_ONLY}"})
        else:
            self.save(step, state, progress, keep_best=best_step)
            self.close()

    def _write_variables(self, step: int, variables: Mapping | None, progress: Mapping) -> None:
        if variables is None:
            variables, _ = self.restore_variables(step)
        leaves = tree.host_copy({"train": variables})
        packed.write_checkpoint(self._folder / f"{step}{VARIABLES_ONLY}", leaves, {"best": progress["best"]})

    def _delete_all_except(self, keep: set[str]) -> None:
        """Deletes other checkpoints, and what killed processes left of unfinished ones."""
        with disk_errors(self._folder, "delete files of"):
            for path in sorted(self._folder.iterdir()):
                if path.name.partition(".")[0].isdecimal() and path.name not in keep:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def wait(self) -> None:
        """Waits until everything that was saved is on disk.

        Raises:
          UserError: It could not be written.
        """
        if self._manager is not None:
            with self._write_errors():
                self._manager.wait_until_finished()
                sync(self._folder)

    def close(self) -> None:
        """Waits, and ends the threads of orbax; another save starts new ones."""
        try:
            self.wait()
        finally:
            self._abandon()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            make_folder(self._folder)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(lambda: self._best),
                cleanup_tmp_directories=True,  # deletes checkpoints that a killed process left unfinished
                lightweight_initialize=True,  # otherwise a damaged step prevents the manager from opening
                save_root_metadata=False,
                create=False,
                multiprocessing_options=ONE_PROCESS,
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

    def _clear_from(self, manager: ocp.CheckpointManager, step: int, best: int | None) -> None:
        for old in manager.all_steps():
            if old >= step:
                manager.wait_until_finished()
                manager.delete(old)
        for found in list_checkpoints(self._folder):
            if found.packed and (found.step >= step or (not found.whole and found.step != best)):
                found.path.unlink()

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
        return sorted({found.step for found in find_checkpoints(self._folder)})

    def restore(self, like: Any, which: str | int = "last") -> tuple[Any, dict, int]:
        """Reads a checkpoint exactly as it was saved.

        Args:
          like: Pytree of arrays or ShapeDtypeStructs with the structure, shapes and dtypes of the state.
          which: 'last' (the newest one that is not damaged; logs a warning for damaged ones), 'best', or a step.

        Returns:
          (state with NumPy leaves in the structure of `like`, progress, step).

        Raises:
          UserError: There is no such checkpoint, it is damaged, it has only variables, as the best one of a finished
            run, or its leaves are not those of `like`.
        """
        wanted = tree.flatten(like)
        candidates = self._candidates(which)
        whole = [found for found in candidates if found.whole]
        if not whole:
            raise UserError(f"Checkpoint {candidates[0].path} has only the network's variables; choose 'last'.")

        def load(path):
            record = read_record(path)
            tree.check_same(wanted, record["leaves"], f"Checkpoint {path}")
            return read_leaves(path, record["leaves"]), record["progress"]

        (leaves, progress), step = first_good(whole, load)
        return tree.rebuild(like, {path: leaves[tree.name(path)] for path in wanted}), progress, step

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

        leaves, step = first_good(self._candidates(which), load)
        nested = traverse_util.unflatten_dict({tree.path(name)[1:]: leaf for name, leaf in leaves.items()})
        return {"params": {}, "batch_stats": {}, **nested}, step

    def _candidates(self, which: str | int) -> list[Found]:
        """Returns the checkpoints to try, the first one first."""
        found = find_checkpoints(self._folder)[::-1]
        if not found:
            raise UserError(f"Run '{self._owner}' has no checkpoint in {self._folder}; train it first.")
        if which == "last":
            return found
        step = self._best_step(found) if which == "best" else which
        chosen = [one for one in found if str(one.step) == str(step)]
        if not chosen:
            there = ", ".join(map(str, self.steps()))
            raise UserError(f"Run '{self._owner}' has no checkpoint '{step}'; choose 'last' or one of: {there}.")
        return chosen

    def _best_step(self, found: list[Found]) -> int:
        record, _ = first_good(found, read_record)
        best = record["progress"].get("best") or {}
        if best.get("step") is None:
            there = ", ".join(map(str, self.steps()))
            raise UserError(f"Run '{self._owner}' has no best checkpoint; choose 'last' or one of: {there}.")
        return best["step"]


class _LatestAndBest:
    """Tells orbax to keep the newest step and the best one, or the two newest ones if these are the same.

    orbax's own `best_fn` would delete the newest checkpoint.

    Args:
      best: Function that returns the step of the best checkpoint, or None.
    """

    def __init__(self, best: Callable[[], int | None]):
        self._best = best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(info.step for info in checkpoints)
        keep = {*steps[-1:], self._best()}
        if len(keep & {*steps}) < 2:
            keep |= {*steps[-2:]}
        return [info.step in keep for info in checkpoints]
