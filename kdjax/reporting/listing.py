"""The runs of a store at a glance: a table of their states and scores, two runs side by side, and deleting runs."""

import fnmatch
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.config import differences, teacher_name, with_defaults
from kdjax.errors import UserError
from kdjax.reporting.tables import markdown
from kdjax.store import Run, Store

STATES = ("running", "stopped", "finished", "damaged")
_MOST_EPOCHS = 12  # rows of the table of two runs' epochs


class ListedRun(NamedTuple):
    """A run of a store.

    Attributes:
      name: Name in the store.
      state: 'running' while a process trains it, 'stopped' if it can be resumed, 'finished', or 'damaged'.
      epoch: Epochs that are complete; None if that is not known.
      last: Test accuracy of the last epoch in [0, 1]; before the run is finished, of the last evaluation; None if there
        is none.
      best: Test accuracy of the best checkpoint in [0, 1], None if there is none.
      losses: Names of the losses.
      teachers: Names of the teachers' runs, or of their files of outputs.
      needs: Names of all runs that it needs: its teachers, and the run that it started from.
      seconds: Time of all epochs, None if it is not known.
      bytes: Size of its folder on disk.
      problem: What is wrong with a damaged run, '' for others.
    """

    name: str
    state: str
    epoch: int | None
    last: float | None
    best: float | None
    losses: tuple[str, ...]
    teachers: tuple[str, ...]
    needs: tuple[str, ...]
    seconds: float | None
    bytes: int
    problem: str = ""


class RunList(list[ListedRun]):
    """Runs of a store; printed, or as the last line of a notebook's cell, they are a table."""

    def __str__(self) -> str:
        header = ("run", "state", "epoch", "last", "best", "losses", "teachers", "seconds", "MB")
        return markdown(header, [_cells(run) for run in self]) + "".join(
            f"\n{run.name} is damaged: {run.problem}" for run in self if run.problem
        )

    def _repr_markdown_(self) -> str:
        return str(self)


def list_runs(store: Store, match: str = "*") -> RunList:
    """Returns the runs of a store, by name. No code that a run names is imported, and a damaged run is told.

    Args:
      store: The store.
      match: Shell pattern of the names, in which '*' also matches '/'.
    """
    return RunList(_listed(store.run(name)) for name in store.runs() if fnmatch.fnmatchcase(name, match))


def _listed(run: Run) -> ListedRun:
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    try:
        config = with_defaults((run.manifest or {})["config"])
        rows, result = run.metrics(), run.result
        teachers = tuple(map(teacher_name, config["teachers"].values()))
        runs = tuple(str(teacher["run"]) for teacher in config["teachers"].values() if teacher["run"])
        origin = (str(config["init_from"]),) if config["init_from"] else ()
        state = "running" if run.is_locked else "stopped" if result is None else "finished"
        return ListedRun(
            name=run.name,
            state=state,
            epoch=int(rows[-1]["epoch"]) if rows else 0 if config["losses"] else None,
            last=_accuracy((result or {}).get("last") or _evaluated(rows)),
            best=_accuracy((result or {}).get("best")),
            losses=tuple(config["losses"]),
            teachers=teachers,
            needs=(*runs, *origin),
            seconds=float(sum(row["seconds"] for row in rows)) if rows else None,
            bytes=size,
        )
    except (UserError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return ListedRun(run.name, "damaged", None, None, None, (), (), (), None, size, words)


def _evaluated(rows: Sequence[Mapping]) -> Mapping | None:
    """Returns the last row that has scores on the test split."""
    return next((row for row in reversed(rows) if "test" in row), None)


def _accuracy(scores: Mapping | None) -> float | None:
    test = (scores or {}).get("test")
    return None if not test or test["accuracy"] is None else float(test["accuracy"])


def _cells(run: ListedRun) -> tuple[str, ...]:
    return (
        run.name,
        run.state,
        "" if run.epoch is None else str(run.epoch),
        _percent(run.last),
        _percent(run.best),
        " + ".join(run.losses),
        ", ".join(run.teachers),
        "" if run.seconds is None else f"{run.seconds:.1f}",
        f"{run.bytes / 1e6:.1f}",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def delete_runs(store: Store, names: Iterable[str], *, force: bool = False) -> list[str]:
    """Deletes runs with all that belongs to them, and returns their names.

    Args:
      store: The store.
      names: Names of the runs.
      force: Whether to delete runs that others need.

    Raises:
      UserError: A run does not exist, is being trained, or is needed by a run that is not deleted with it. Nothing is
        deleted then.
    """
    runs = [store.find(name) for name in names]
    chosen = {run.name for run in runs}
    for run in runs:
        if run.is_locked:
            raise UserError(f"run '{run.name}' is being trained; stop that process first.")
    for other in [] if force else list_runs(store):
        needed = sorted(chosen & set(other.needs))
        if needed and other.name not in chosen:
            raise UserError(
                f"run '{needed[0]}' is needed by run '{other.name}'; delete that one too, or repeat with --force."
            )
    for run in runs:
        # The manifest goes last: a run that was killed while it was deleted is still listed and can be deleted again.
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        shutil.rmtree(run.path)
        for parent in itertools.takewhile(lambda path: path != store.root, run.path.parents):
            if any(parent.iterdir()):
                break
            parent.rmdir()
    return [run.name for run in runs]


def compare_runs(store: Store, first: str, second: str) -> str:
    """Returns two runs side by side in Markdown: the fields in which their configs differ, scores and epochs.

    Args:
      store: The store.
      first: Name of a run.
      second: Name of another one.

    Raises:
      UserError: A run does not exist or is damaged.
    """
    runs = [store.find(first), store.find(second)]
    configs = [with_defaults((run.manifest or {})["config"]) for run in runs]
    fields = [line.partition(": ") for line in differences(*configs)]
    rows = [(field, *values.split(" -> ", 1)) for field, _, values in fields]
    parts = [markdown(("field", first, second), rows) if rows else "Their configs are equal."]
    results = [run.result or {} for run in runs]
    parts.append(markdown(("score", first, second), _score_rows(results)))
    epochs = _epoch_rows([run.metrics() for run in runs])
    parts.append(markdown(("epoch", "measure", first, second), epochs))
    return "\n\n".join(parts)


def _score_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for checkpoint, split in itertools.product(("last", "best"), ("train", "validation", "test")):
        found = [result.get(checkpoint, {}).get(split) for result in results]
        if any(found):
            rows.append((f"{checkpoint}, {split} accuracy", *(_percent((one or {}).get("accuracy")) for one in found)))
            rows.append((f"{checkpoint}, {split} loss", *(_number((one or {}).get("loss")) for one in found)))
    return rows


def _epoch_rows(metrics: Sequence[Sequence[Mapping]]) -> list[tuple[str, ...]]:
    """Returns the training loss and the held-out accuracies of some epochs, evenly spread and with the last one."""
    by_epoch = [{row["epoch"]: row for row in rows} for rows in metrics]
    epochs = sorted(set().union(*by_epoch))
    step = -(-len(epochs) // _MOST_EPOCHS) or 1
    rows = []
    for epoch in epochs[::-1][::step][::-1]:
        found = [rows.get(epoch, {}) for rows in by_epoch]
        rows.append((str(epoch), "training loss", *(_number(row.get("train", {}).get("loss")) for row in found)))
        for split in ("validation", "test"):
            if any(split in row for row in found):
                accuracies = [_percent(row.get(split, {}).get("accuracy")) for row in found]
                rows.append((str(epoch), f"{split} accuracy", *accuracies))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
