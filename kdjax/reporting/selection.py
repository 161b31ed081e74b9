"""Runs that differ in their seeds alone as candidates of a report, and the choice among a method's settings."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import UserError
from kdjax.reporting.collect import Row, groups_of


class Candidate(NamedTuple):
    """Runs that are alike but for their seeds.

    Attributes:
      rows: that are reported.
      setting: what tells it from the method's other settings, '' for the only one.
      tried: how many settings the method has.
      note: how it was chosen, or why it could not be.
    """

    rows: list[Row]
    setting: str
    tried: int
    note: str = ""


def candidates(rows: Sequence[Row], select: str = "", checkpoint: str = "last") -> list[Candidate]:
    """Returns the groups of a store's runs.

    Args:
      rows: of `collect`.
      select: '' for all settings of every method, or 'validation' for the one of the best mean validation accuracy on
        the seeds that most of them have (half of these where it has no others), reported by its runs of other seeds.
      checkpoint: 'last' or 'best', whose validation accuracy that is.

    Raises:
      UserError: another way to select, or another checkpoint.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(f"--checkpoint='{checkpoint}' is none; say 'last' or 'best'.")
    if select not in ("", "validation"):
        raise UserError(f"--select='{select}' is none; say 'validation', or leave it out for all settings.")
    methods: dict[str, list[list[Row]]] = {}
    for group in groups_of(rows):
        methods.setdefault(group[0].family, []).append(group)
    found = [
        [Candidate(group, _setting(group, groups), len(groups)) for group in groups] for groups in methods.values()
    ]
    if not select:
        return list(itertools.chain.from_iterable(found))
    of_data = itertools.groupby(found, key=lambda every: every[0].rows[0].data)  # groups come by data
    return [chosen for _, every in of_data for chosen in _selected(list(every), checkpoint)]


def _setting(group: Sequence[Row], groups: Sequence[Sequence[Row]]) -> str:
    """The fields in which a method's settings differ, at the group's values."""
    every = [other[0].settings for other in groups]
    fields = sorted({field for settings in every for field in settings})
    varied = [field for field in fields if len({json.dumps(settings.get(field)) for settings in every}) > 1]
    return ", ".join(f"{field} = {_short(group[0].settings.get(field))}" for field in varied)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _selected(methods: Sequence[list[Candidate]], checkpoint: str) -> list[Candidate]:
    """The best setting of each method on a data set, told on seeds that chose for none of the methods."""
    several = len({row.seed for every in methods for own in every for row in own.rows}) > 1
    level = "seed" if several else "split"
    picks = [_choose(every, level, checkpoint) for every in methods]
    spent = set().union(*(chose for _, chose in picks))
    return [_on_others(candidate, level, chose, spent) for kept, chose in picks for candidate in kept]


def _choose(every: list[Candidate], level: str, checkpoint: str) -> tuple[list[Candidate], set]:
    """A method's best setting, and the seeds that chose it: those that most settings have, or the first half of them.

    Half of them, where the best has no others to be told on. Where nothing tells settings apart all of them stay.
    """
    if len(every) == 1:
        return every, set()
    if all(validation_score(own.rows, checkpoint) == -math.inf for own in every):
        return [own._replace(note="no validation accuracy: nothing was chosen") for own in every], set()
    having = Counter(seed for own in every for seed in _places(own.rows, level))
    most = max(having.values())
    common = sorted(seed for seed, settings in having.items() if settings == most > 1)
    for seeds in (set(common), set(common[: len(common) // 2])):
        best = _best_on(every, level, seeds, checkpoint)
        if seeds and _places(best.rows, level) - seeds:
            among = f" among {most} settings" if most < len(every) else ""
            return [best._replace(note=f"{level}s {_listed(seeds)} chose{among}")], seeds
    best = _best_on(every, level, set(common) or set(having), checkpoint)
    why = f"no {level} that nothing was chosen by" if common else f"no {level} that two settings have"
    return [best._replace(note=f"{why}: chosen and reported on the same")], set()


def _best_on(every: Sequence[Candidate], level: str, seeds: set, checkpoint: str) -> Candidate:
    """Of several equal ones the first."""
    scores = [validation_score([row for row in own.rows if getattr(row, level) in seeds], checkpoint) for own in every]
    return every[scores.index(max(scores))]


def _on_others(candidate: Candidate, level: str, chose: set, spent: set) -> Candidate:
    """A setting without the seeds that chose: its own never, those of other methods where it has more."""
    if candidate.note and not chose:
        return candidate  # told on what chose it
    others = [row for row in candidate.rows if getattr(row, level) not in spent]
    if not others:
        return candidate._replace(rows=[row for row in candidate.rows if getattr(row, level) not in chose])
    dropped = _places(candidate.rows, level) & spent
    note = candidate.note or (f"{level}s {_listed(dropped)} left out" if dropped else "")
    return candidate._replace(rows=others, note=note)


def _places(rows: Sequence[Row], level: str) -> set:
    return {getattr(row, level) for row in rows}


def validation_score(rows: Sequence[Row], checkpoint: str = "last") -> float:
    """Returns the mean validation accuracy of runs in [0, 1], -inf where one of them has none.

    Args:
      rows: any number.
      checkpoint: 'last' or 'best'.
    """
    scores = [row.score(checkpoint, "validation") for row in rows]
    return -math.inf if not scores or None in scores else float(np.mean(scores))


def _listed(numbers: set) -> str:
    return ", ".join(map(str, sorted(numbers)))
