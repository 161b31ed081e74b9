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


def collect(store: Store, patterns: Sequence[str] = ()) -> list[RunRecord]:
    """Returns the records of the runs whose names match one of some patterns.

    Args:
      store: Store that holds the runs, and their teachers, whose names need not match.
      patterns: Shell patterns, in which '*' also matches '/'; none for all runs.

    Raises:
      UserError: There are no such runs, or a manifest or a result is damaged.
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
    records = [read_record(store, name, known) for name in names]
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
        manifest = run.manifest
        if manifest is not None:
            with _damage(run):
                config = with_defaults(manifest["config"])
                teachers = {key: read_record(store, use["run"], known) for key, use in config["teachers"].items()}
                origin = read_record(store, config["init_from"], known) if config["init_from"] else None
                known[name] = make_record(name, manifest, config, run.result, teachers, origin)
    return known[name]


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
