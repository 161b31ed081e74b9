"""Reads the runs of a store, and groups those that differ only in their seeds."""

import contextlib
import fnmatch
import json
from collections.abc import Iterator, Sequence

from absl import logging

from kdjax.config import with_defaults
from kdjax.errors import UserError
from kdjax.reporting.run_record import RunRecord, make_record
from kdjax.store import Run, Store
from kdjax.store.run import check_scores


def collect(store: Store, patterns: Sequence[str] = (), damaged: list[str] | None = None) -> list[RunRecord]:
    """Returns the records of the runs whose names match one of some patterns; damaged runs are left out with a warning.

    Args:
      store: Store that holds the runs, and their teachers, whose names need not match.
      patterns: Shell patterns, in which '*' also matches '/'; none for all runs.
      damaged: Gets a sentence for each damaged run.

    Raises:
      UserError: There are no such runs, or all of them are damaged.
    """
    every = store.runs()
    names = [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns or ("*",))]
    if not every:
        raise UserError(f"The store {store.root} holds no runs; train some, or choose another --store.")
    if not names:
        raise UserError(
            f"None of the {len(every)} runs of {store.root} matches --runs={','.join(patterns)}; '*' matches all."
        )
    known: dict[str, RunRecord | None] = {}
    records, faults = [], []
    for name in names:
        try:
            records.append(read_record(store, name, known))
        except UserError as error:
            faults.append(str(error))
            logging.warning("run '%s' is left out: %s", name, error)
    if faults and not records:
        raise UserError(faults[0])
    if damaged is not None:
        damaged += faults
    return [record for record in records if record is not None]


def read_record(store: Store, name: str, known: dict[str, RunRecord | None]) -> RunRecord | None:
    """Returns a run's record, or None if the store lacks the run.

    Args:
      store: Store that holds the run and its teachers.
      name: Name of the run.
      known: Records that were read before, by name; the new ones are added.

    Raises:
      UserError: The run's manifest or result is damaged.
    """
    if name not in known:
        known[name] = None  # ends the recursion if a damaged store has a ring of teachers
        run = store.run(name)
        with _forgetting(name, known):
            manifest = run.manifest
        if manifest is not None:
            with _forgetting(name, known), _damage(run):
                config = with_defaults(manifest["config"])
                of_files = {key: record.get("run", "") for key, record in manifest.get("teachers", {}).items()}
                teachers = {
                    key: _other(store, use["run"] or of_files.get(key, ""), known)
                    for key, use in config["teachers"].items()
                }
                origin = _other(store, config["init_from"], known) if config["init_from"] else None
                result = run.result
                check_scores(result or {}, run.path / "result.json")
                known[name] = make_record(name, manifest, config, result, teachers, origin)
    return known[name]


def _other(store: Store, name: str, known: dict[str, RunRecord | None]) -> RunRecord | None:
    """Returns the record of a teacher or of an origin; a damaged one counts as one that the store lacks."""
    if not name:  # a file of outputs from elsewhere
        return None
    try:
        return read_record(store, name, known)
    except UserError:
        return None


@contextlib.contextmanager
def _forgetting(name: str, known: dict[str, RunRecord | None]) -> Iterator[None]:
    """Forgets a run that turns out to be damaged, so that all who ask for it hear of the damage."""
    try:
        yield
    except UserError:
        known.pop(name, None)
        raise


@contextlib.contextmanager
def _damage(run: Run) -> Iterator[None]:
    """Turns the exception that a missing field or one of another type raises into a UserError that names the run."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run.path} is damaged: manifest.json or result.json lacks what kdjax writes ({type(error).__name__}: "
            f"{error}); repair it, delete the folder, or leave the run out with --runs."
        ) from error


def group_by_setting(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Groups the finished runs that differ only in their seeds; of runs with the same seeds only the first counts.

    Runs that share their order (`config.data.order_seed`) are one draw: only the first of them counts, and the others
    are named in a warning.

    Args:
      records: Records of `collect`.

    Returns:
      Groups ordered by data set and network, those without teachers first; the runs of a group are ordered by split,
      seeds of the teachers and seed.
    """
    found: dict[str, dict[tuple, RunRecord]] = {}
    for record in records:
        if record.is_counted:
            setting = record.family + json.dumps(record.settings, sort_keys=True)
            first = found.setdefault(setting, {}).setdefault(record.key, record)
            if first is not record:
                logging.warning(
                    "run '%s' has the seeds or the order of run '%s': they are one draw and count once.",
                    *(record.name, first.name),
                )
    groups = [sorted(group.values(), key=lambda record: repr(record.key)) for group in found.values()]
    return sorted(groups, key=lambda group: (group[0].data, group[0].network, bool(group[0].teachers)))
