"""The report's table: one row for each group of runs, with its difference to a baseline and the evidence for it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import UserError, nearest
from kdjax.reporting import statistics
from kdjax.reporting.published import Published
from kdjax.reporting.run_record import RunRecord, TestSplit
from kdjax.reporting.selection import RunGroup, validation_score
from kdjax.reporting.statistics import Interval
from kdjax.reporting.table_row import MeanStd, TableRow

SMOOTHING = "losses.cross_entropy.label_smoothing"
Correct = Mapping[str, np.ndarray]  # run -> whether its prediction is right, bool [test examples]


class Difference(NamedTuple):
    """A row's difference to its baseline.

    Attributes:
      interval: Mean difference with its interval, or None without a baseline.
      pairs: Number of paired differences.
      over: Unit of replication of the interval, in words.
    """

    interval: Interval | None
    pairs: int
    over: str


def compare(
    groups: Sequence[RunGroup],
    *,
    baseline: str = "",
    interval: str = "t",
    checkpoint: str = "last",
    correct: Correct | None = None,
) -> list[TableRow]:
    """Returns the rows of the table.

    Args:
      groups: Groups of `selection.select_groups`.
      baseline: Name of a method, or its losses joined by ' + '. Each row is compared with the row of that method on the
        same data set and network, from the same teacher if it has one. '' for cross-entropy without a teacher.
      interval: Kind of interval, a key of `statistics.INTERVALS`.
      checkpoint: Checkpoint whose accuracies are compared, 'last' or 'best'.
      correct: Run -> whether its predictions are right [test examples], for the runs that were evaluated.

    Raises:
      UserError: No run has finished, no method has the name of the baseline, the interval is unknown, or a run has no
        such checkpoint.
    """
    _check_options(groups, baseline, interval, checkpoint)
    places = [_find_baseline(group, groups, baseline) for group in groups]
    return [
        _row(number, group, place, groups, interval, checkpoint, correct or {})
        for number, (group, place) in enumerate(zip(groups, places, strict=True), 1)
    ]


def _check_options(groups: Sequence[RunGroup], baseline: str, interval: str, checkpoint: str) -> None:
    if interval not in statistics.INTERVALS:
        raise UserError(f"unknown --interval '{interval}'.{nearest(interval, statistics.INTERVALS)}")
    if not groups:
        raise UserError("No run has finished. Repeat a run's command to resume it.")
    names = {name for group in groups for name in _names(group.runs[0])}
    if baseline and baseline not in names:
        raise UserError(f"--baseline='{baseline}': no method has that name.{nearest(baseline, names)}")
    for run in (run for group in groups for run in group.runs):
        if run.score(checkpoint) is None:
            raise UserError(
                f"--checkpoint={checkpoint}: run '{run.name}' has no such result; every run has --checkpoint=last."
            )


def _names(run: RunRecord) -> tuple[str, str]:
    return run.method, " + ".join(run.losses)


def _find_baseline(group: RunGroup, groups: Sequence[RunGroup], name: str) -> int | None:
    """Returns the index of the group that a group is compared with.

    Of several candidates it is the one without label smoothing, from the same teacher, with the fewest other settings
    that differ, with the most runs: in this order. Smoothed labels are a method, which is itself compared with plain
    ones.
    """
    own = group.runs[0]
    candidates = []
    for place, other in enumerate(groups):
        base = other.runs[0]
        named = name in _names(base) if name else base.losses == ("cross_entropy",) and not base.teachers
        if not named or not _is_comparable(own, base):
            continue
        changed = sum(own.settings.get(field) != value for field, value in base.settings.items())
        smoothed = not name and bool(base.settings.get(SMOOTHING))
        candidates.append((smoothed, _teacher_rank(own, base), changed, -len(other.runs), place))
    return min(candidates)[-1] if candidates else None


def _is_comparable(own: RunRecord, base: RunRecord) -> bool:
    """Whether two runs have the same data set and network, and the baseline no teacher that the run does not have."""
    same_task = (base.data, base.network) == (own.data, own.network)
    return (
        same_task and base.generation in (None, own.generation) and (_teacher_rank(own, base) < 2 or not own.teachers)
    )


def _teacher_rank(own: RunRecord, base: RunRecord) -> int:
    """Returns 0 for a baseline from the same teachers, 1 for one without teachers, 2 for one from other teachers."""
    return 0 if base.teachers == own.teachers else 1 if not base.teachers else 2


def _row(
    number: int,
    group: RunGroup,
    place: int | None,
    groups: Sequence[RunGroup],
    interval: str,
    checkpoint: str,
    correct: Correct,
) -> TableRow:
    """Returns the row of a group, whose baseline is at `place` in the groups."""
    first, runs = group.runs[0], group.runs
    base = None if place is None or groups[place] is group else groups[place]
    difference = _difference(runs, base.runs if base else None, interval, checkpoint)
    test_error, test_error_by = _test_error(runs, correct)
    return TableRow(
        number=number,
        data=first.data,
        network=first.network,
        method="{} generation {}".format(*first.generation) if first.generation else first.method,
        loss=" + ".join(first.losses),
        teacher="; ".join(f"{network}: {losses}" for network, losses in first.teachers),
        setting=group.setting,
        runs=len(runs),
        teachers=len({run.teacher_runs for run in runs if run.teacher_runs}),
        last=statistics.mean_std([_percent(run, "last") for run in runs]),
        best=_best(runs),
        validation=None if validation_score(runs) == -math.inf else 100 * validation_score(runs),
        published=_published(runs),
        against=None if base is None or place is None else place + 1,
        difference=_with_test_error(difference, runs, base, correct),
        pairs=difference.pairs,
        over=difference.over,
        verdict=_verdict(difference, runs, base, interval, correct),
        test_error=test_error,
        test_error_by=test_error_by,
        tried=group.tried,
        examples=first.examples,
        teacher_examples=first.teacher_examples,
        unequal=base is not None and (group.tried, first.examples) != (base.tried, base.runs[0].examples),
        note=group.note,
    )


def _percent(run: RunRecord, checkpoint: str) -> float:
    score = run.score(checkpoint)
    return math.nan if score is None else 100 * score


def _best(runs: Sequence[RunRecord]) -> MeanStd | None:
    if any(run.score("best") is None for run in runs):
        return None
    return statistics.mean_std([_percent(run, "best") for run in runs])


def _published(runs: Sequence[RunRecord]) -> Published | None:
    """Returns the published accuracy if all runs have the same, with the provenance of the newest kind of config."""
    published = [run.published for run in runs if run.published]
    if len(published) < len(runs) or len({number.accuracy for number in published}) > 1:
        return None
    newest = max(published, key=lambda number: (bool(number.selection), len(number.provenance)))
    return newest._replace(unlike=tuple(dict.fromkeys(itertools.chain.from_iterable(n.unlike for n in published))))


def _verdict(
    difference: Difference, runs: Sequence[RunRecord], base: RunGroup | None, interval: str, correct: Correct
) -> str:
    """Returns the verdict on a difference; equal differences of all seeds say nothing about their noise."""
    widened = _with_test_error(difference, runs, base, correct)
    if widened is None or difference.interval is None:
        return ""
    fewest = statistics.FEWEST[interval]
    if statistics.verdict(difference.interval, fewest) == "cannot tell":
        return "cannot tell"
    return statistics.verdict(widened, fewest)


def _with_test_error(
    difference: Difference, runs: Sequence[RunRecord], base: RunGroup | None, correct: Correct
) -> Interval | None:
    """Returns the interval of a difference with the error due to the test set, where that is known."""
    if base is None or difference.interval is None:
        return difference.interval
    return statistics.with_test_error(difference.interval, _difference_error(runs, base.runs, correct))


def _difference(
    own: Sequence[RunRecord], base: Sequence[RunRecord] | None, interval: str, checkpoint: str
) -> Difference:
    if base is None:
        return Difference(None, 0, "one teacher" if _has_one_teacher(own) else "")
    values, others = ({run.key: _percent(run, checkpoint) for run in runs} for runs in (own, base))
    differences = statistics.paired_differences(values, others)
    if differences:
        shared = bool(own[0].teachers) != bool(base[0].teachers)
        found, over = _paired(differences, shared, interval, min(_overlap(own), _overlap(base)))
    else:
        (units, level), (base_units, base_level) = map(statistics.nested_units, (values, others))
        found = statistics.UNPAIRED[interval](units, base_units)
        over = f"unpaired, {_units(units, level)} and {_units(base_units, base_level)}"
    if _has_one_teacher(own) or _has_one_teacher(base):
        over = f"one teacher, {over}"
    return Difference(found, len(differences), over)


def _overlap(runs: Sequence[RunRecord]) -> float:
    """Returns the test examples per other example where the runs' splits redraw the same examples, else 0."""
    if len({run.test.sha256 for run in runs if run.test}) < 2:
        return 0.0
    share = float(np.mean([run.held_out for run in runs]))
    return share / (1 - share)


def _paired(differences: Mapping[tuple, float], shared: bool, interval: str, overlap: float) -> tuple[Interval, str]:
    """Returns the interval of paired differences, and its unit of replication.

    If students of several teachers are compared with the same runs without a teacher (`shared`), the chance in these
    runs is the same in all teachers' differences and does not show between them, so the interval over seeds may be
    wider than the one over teachers. The wider of the two is returned. For 5 teachers and 5 seeds that vary equally it
    covers 94 %; for many, as little as 83 %.

    An interval over splits that redraw the same examples is corrected for their `overlap`.
    """
    units, level = statistics.nested_units(differences)
    over_teachers = statistics.INTERVALS[interval](units)
    if statistics.LEVELS[level] == "splits":
        over_teachers = statistics.widened(over_teachers, overlap)
    if shared and statistics.LEVELS[level] == "teachers":
        seeds = statistics.seed_means(differences)
        over_seeds = statistics.INTERVALS[interval](seeds)
        if over_seeds.high - over_seeds.low > over_teachers.high - over_teachers.low + 1e-9:
            return over_seeds, f"{_units(seeds, statistics.LEVELS.index('seeds'))} beside {_units(units, level)}"
    return over_teachers, _units(units, level)


def _has_one_teacher(runs: Sequence[RunRecord]) -> bool:
    return len({run.teacher_runs for run in runs}) == 1 and bool(runs[0].teacher_runs)


def _units(units: Sequence[float], level: int) -> str:
    return f"{len(units)} {statistics.LEVELS[level]}" if len(units) > 1 else "one run"


def _test_error(runs: Sequence[RunRecord], correct: Correct) -> tuple[float, str]:
    """Returns the standard error of the mean accuracy in % due to the test set, and how it was estimated."""
    sizes = [run.test.size for run in runs if run.test]
    evaluated = [run for run in runs if run.name in correct]
    if evaluated:
        errors = [statistics.bootstrap_error(correct[run.name][None]) for run in evaluated]
        return 100 * float(np.mean(errors)) * _of_several_splits(runs), "bootstrap"
    if not sizes:
        return 0.0, "unknown"
    accuracy = statistics.mean_std([score for run in runs if (score := run.score("last")) is not None])[0]
    return 100 * statistics.binomial_error(accuracy, float(np.mean(sizes))) * _of_several_splits(runs), "binomial"


def _of_several_splits(runs: Sequence[RunRecord]) -> float:
    """Returns the standard error of a mean over the splits' test sets, as a multiple of that of one test set.

    The test sets are drawn from the same examples, so that they share some of them.
    """
    splits = {run.test for run in runs if run.test}
    share = float(np.mean([run.held_out for run in runs]))
    return math.sqrt((1 + (len(splits) - 1) * share) / len(splits)) if splits else 1.0


def _difference_error(own: Sequence[RunRecord], base: Sequence[RunRecord], correct: Correct) -> float:
    """Returns the standard error of a mean difference in % due to the test set, 0 where no pair was evaluated.

    It is by bootstrap over test examples, of the mean gain over all pairs of runs of one split and seed that were
    evaluated. Two errors of single accuracies would say too much: both rows are scored on the same examples.
    """
    partners = {(run.split, run.seed): run for run in base if run.name in correct}
    gains: dict[TestSplit | None, list[np.ndarray]] = {}
    for run in own:
        partner = partners.get((run.split, run.seed))
        if run.name in correct and partner and run.test == partner.test:
            gains.setdefault(run.test, []).append(correct[run.name].astype(float) - correct[partner.name])
    errors = [statistics.bootstrap_error(np.stack(of_set)) for of_set in gains.values()]
    return 100 * float(np.mean(errors)) * _of_several_splits(own) if errors else 0.0
