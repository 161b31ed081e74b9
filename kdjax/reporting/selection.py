"""Groups of runs that differ only in their seeds, and the selection of each method's setting by validation."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import UserError
from kdjax.reporting.collect import group_by_setting
from kdjax.reporting.run_record import RunRecord

CHECKPOINTS = ("last", "best")


class RunGroup(NamedTuple):
    """Runs of one setting of one method, which differ only in their seeds.

    Attributes:
      runs: The runs that are reported.
      setting: The fields in which it differs from the method's other settings, '' for the only setting.
      tried: Number of settings of the method.
      note: How the setting was selected, or why it could not be.
    """

    runs: list[RunRecord]
    setting: str
    tried: int
    note: str = ""


class Choice(NamedTuple):
    """The setting of a method that was selected, or all of its settings, and the seeds that it was selected on."""

    groups: list[RunGroup]
    seeds: set


def select_groups(records: Sequence[RunRecord], select: str = "", checkpoint: str = "last") -> list[RunGroup]:
    """Returns the groups of runs that are reported.

    Args:
      records: Records of `collect`.
      select: '' for all settings of every method. 'validation' for the setting with the best mean validation accuracy
        on the seeds that most settings have (on half of these seeds, if the setting has no others); its runs of other
        seeds are reported.
      checkpoint: Checkpoint whose validation accuracy is used, 'last' or 'best'.

    Raises:
      UserError: Another value of `select` or `checkpoint`.
    """
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"unknown --checkpoint '{checkpoint}'; use 'last' or 'best'.")
    if select not in ("", "validation"):
        raise UserError(f"unknown --select '{select}'; use 'validation', or leave it out for all settings.")
    families: dict[str, list[list[RunRecord]]] = {}
    for runs in group_by_setting(records):
        families.setdefault(runs[0].family, []).append(runs)
    methods = [
        [RunGroup(runs, _setting(runs, settings), len(settings)) for runs in settings] for settings in families.values()
    ]
    if not select:
        return list(itertools.chain.from_iterable(methods))
    of_data = itertools.groupby(methods, key=lambda groups: groups[0].runs[0].data)  # methods are ordered by data set
    return [group for _, of_set in of_data for group in _select(list(of_set), checkpoint)]


def _setting(runs: Sequence[RunRecord], settings: Sequence[Sequence[RunRecord]]) -> str:
    """Returns the fields in which a method's settings differ, with the values of the runs."""
    every = [other[0].settings for other in settings]
    fields = sorted({field for values in every for field in values})
    varied = [field for field in fields if len({json.dumps(values.get(field)) for values in every}) > 1]
    return ", ".join(f"{field} = {_short(runs[0].settings.get(field))}" for field in varied)


def _short(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _select(methods: Sequence[list[RunGroup]], checkpoint: str) -> list[RunGroup]:
    """Returns the best setting of each method on a data set, with runs of seeds that selected none of the methods."""
    several_seeds = len({run.seed for groups in methods for group in groups for run in group.runs}) > 1
    level = "seed" if several_seeds else "split"
    choices = [_choose(groups, level, checkpoint) for groups in methods]
    used = set().union(*(choice.seeds for choice in choices))
    return [_on_other_seeds(group, level, choice.seeds, used) for choice in choices for group in choice.groups]


def _choose(groups: list[RunGroup], level: str, checkpoint: str) -> Choice:
    """Selects a method's best setting.

    It is selected on the seeds that most settings have, or on the first half of them if the best setting then has no
    other seeds to report. All settings are kept if none has a validation accuracy.
    """
    if len(groups) == 1:
        return Choice(groups, set())
    if all(validation_score(group.runs, checkpoint) == -math.inf for group in groups):
        note = "no validation accuracy: no setting was selected"
        return Choice([group._replace(note=note) for group in groups], set())
    settings_of = Counter(seed for group in groups for seed in _values(group.runs, level))
    most = max(settings_of.values())
    common = sorted(seed for seed, settings in settings_of.items() if settings == most > 1)
    for seeds in (set(common), set(common[: len(common) // 2])):
        best = _best_on(groups, level, seeds, checkpoint)
        if seeds and _values(best.runs, level) - seeds:
            among = f" among {most} settings" if most < len(groups) else ""
            return Choice([best._replace(note=f"selected on {level}s {_listed(seeds)}{among}")], seeds)
    best = _best_on(groups, level, set(common) or set(settings_of), checkpoint)
    why = f"no {level} was left out of the selection" if common else f"no {level} that two settings have"
    return Choice([best._replace(note=f"{why}: selected and reported on the same {level}s")], set())


def _best_on(groups: Sequence[RunGroup], level: str, seeds: set, checkpoint: str) -> RunGroup:
    """Returns the group with the best validation accuracy on some seeds, the first of several."""
    runs = [[run for run in group.runs if getattr(run, level) in seeds] for group in groups]
    scores = [validation_score(own, checkpoint) for own in runs]
    return groups[scores.index(max(scores))]


def _on_other_seeds(group: RunGroup, level: str, own: set, used: set) -> RunGroup:
    """Returns a group without the runs of the seeds that selected it.

    Seeds that selected other methods are left out as well if other runs remain.
    """
    if group.note and not own:
        return group  # selected and reported on the same seeds
    others = [run for run in group.runs if getattr(run, level) not in used]
    if not others:
        return group._replace(runs=[run for run in group.runs if getattr(run, level) not in own])
    dropped = _values(group.runs, level) & used
    note = group.note or (f"{level}s {_listed(dropped)} left out" if dropped else "")
    return group._replace(runs=others, note=note)


def _values(runs: Sequence[RunRecord], level: str) -> set:
    return {getattr(run, level) for run in runs}


def validation_score(runs: Sequence[RunRecord], checkpoint: str = "last") -> float:
    """Returns the mean validation accuracy of runs in [0, 1], or -inf if one of them has none.

    Args:
      runs: Any number of runs.
      checkpoint: 'last' or 'best'.
    """
    scores = [run.score(checkpoint, "validation") for run in runs]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known and len(known) == len(scores) else -math.inf


def _listed(seeds: set) -> str:
    return ", ".join(map(str, sorted(seeds)))
