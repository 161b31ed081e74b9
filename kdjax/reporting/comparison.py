"""The report's table: a row for each group of runs, with what it gains over a baseline and what that claim rests on."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import UserError, nearest
from kdjax.reporting import statistics
from kdjax.reporting.collect import Row
from kdjax.reporting.selection import Candidate, validation_score
from kdjax.reporting.statistics import Interval

SMOOTHING = "losses.cross_entropy.label_smoothing"


class Line(NamedTuple):
    """A row of the table; accuracies and differences in %.

    Attributes:
      number: of the row, from 1.
      data, network, method, loss, teacher, setting: what it is of.
      runs: how many.
      teachers: how many different teachers, or sets of teachers, they had.
      last, best: (mean, standard deviation or None) of test accuracy, None where a checkpoint is not there.
      validation: mean validation accuracy of the last checkpoint, or None.
      published: accuracy that a paper prints, or None.
      against: number of the baseline's row, or None.
      difference: to it, of the last checkpoint, or None.
      pairs: how many differences that is the mean of, 0 where the rows have no split and seed in common.
      over: what the interval is over.
      verdict: 'gain', 'loss', 'within noise', 'cannot tell', or ''.
      test_error: standard error that stems from the test set.
      test_error_by: 'bootstrap', 'binomial', or 'unknown' where no manifest says how large the test set is.
      tried: settings of the method.
      examples, teacher_examples: training examples processed by one run, or None.
      unequal: whether settings tried or examples differ from the baseline's.
      note: on how the setting was chosen.
    """

    number: int
    data: str
    network: str
    method: str
    loss: str
    teacher: str
    setting: str
    runs: int
    teachers: int
    last: tuple[float, float | None]
    best: tuple[float, float | None] | None
    validation: float | None
    published: float | None
    against: int | None
    difference: Interval | None
    pairs: int
    over: str
    verdict: str
    test_error: float
    test_error_by: str
    tried: int
    examples: int | None
    teacher_examples: int | None
    unequal: bool
    note: str


def compare(
    found: Sequence[Candidate],
    *,
    baseline: str = "",
    interval: str = "t",
    checkpoint: str = "last",
    correct: Mapping[str, np.ndarray] | None = None,
) -> list[Line]:
    """Returns the table's rows.

    Args:
      found: of `selection.candidates`.
      baseline: method, or its losses joined by ' + ', that every row is compared with on its own data and network,
        from the same teacher if it has one; '' for plain cross-entropy without a teacher.
      interval: a name of `statistics.INTERVALS`.
      checkpoint: 'last' or 'best', of which the differences are.
      correct: run -> [test examples] whether it is right, of runs that were looked at.

    Raises:
      UserError: no row is the baseline, an unknown interval, or a run keeps no such checkpoint.
    """
    if interval not in statistics.INTERVALS:
        raise UserError(f"--interval='{interval}' is none.{nearest(interval, statistics.INTERVALS)}")
    if not found:
        raise UserError("None of the runs is finished; the commands that began them go on, see the README.")
    names = {name for candidate in found for name in _names(candidate.rows[0])}
    if baseline and baseline not in names:
        raise UserError(f"--baseline='{baseline}': no method has that name.{nearest(baseline, names)}")
    for row in (row for candidate in found for row in candidate.rows):
        if row.score(checkpoint) is None:
            raise UserError(
                f"--checkpoint={checkpoint}: run '{row.name}' has no such result; --checkpoint=last is in all."
            )
    places = [_baseline(candidate, found, baseline) for candidate in found]
    return [
        _line(number, candidate, place, found, interval, checkpoint, correct or {})
        for number, (candidate, place) in enumerate(zip(found, places, strict=True), 1)
    ]


def _names(row: Row) -> tuple[str, str]:
    return row.method, " + ".join(row.losses)


def _baseline(candidate: Candidate, found: Sequence[Candidate], name: str) -> int | None:
    """The row that a row is compared with: of several that fit the one of the same settings, else of most runs."""
    own = candidate.rows[0]
    fitting = []
    for place, other in enumerate(found):
        row = other.rows[0]
        named = name in _names(row) if name else row.losses == ("cross_entropy",) and not row.teachers
        if named and (row.data, row.network) == (own.data, own.network) and row.generation in (None, own.generation):
            teacher = 0 if row.teachers == own.teachers else 1 if not row.teachers else 2
            if teacher < 2 or not own.teachers:
                changed = sum(own.settings.get(field) != value for field, value in row.settings.items())
                smoothed = not name and bool(row.settings.get(SMOOTHING))  # a method, itself compared with plain labels
                fitting.append(((smoothed, teacher, changed, -len(other.rows), place), place))
    return min(fitting)[1] if fitting else None


def _line(
    number: int,
    own: Candidate,
    place: int | None,
    found: Sequence[Candidate],
    interval: str,
    checkpoint: str,
    correct: Mapping[str, np.ndarray],
) -> Line:
    first, rows = own.rows[0], own.rows
    base = None if place is None or found[place] is own else found[place]
    difference, pairs, over = _difference(rows, base.rows if base else None, interval, checkpoint)
    error, by = _test_error(rows, correct)
    noise = 0.0 if base is None else _difference_error(rows, base.rows, correct)
    published = {row.published for row in rows}
    return Line(
        number=number,
        data=first.data,
        network=first.network,
        method="{} generation {}".format(*first.generation) if first.generation else first.method,
        loss=" + ".join(first.losses),
        teacher="; ".join(f"{network}: {losses}" for network, losses in first.teachers),
        setting=own.setting,
        runs=len(rows),
        teachers=len({row.teacher_runs for row in rows if row.teacher_runs}),
        last=statistics.mean_std([_percent(row, "last") for row in rows]),
        best=_best(rows),
        validation=None if validation_score(rows) == -math.inf else 100 * validation_score(rows),
        published=published.pop() if len(published) == 1 else None,
        against=None if base is None else place + 1,
        difference=difference,
        pairs=pairs,
        over=over,
        verdict=statistics.verdict(difference, noise, statistics.FEWEST[interval]) if difference else "",
        test_error=error,
        test_error_by=by,
        tried=own.tried,
        examples=first.examples,
        teacher_examples=first.teacher_examples,
        unequal=base is not None and (own.tried, first.examples) != (base.tried, base.rows[0].examples),
        note=own.note,
    )


def _percent(row: Row, checkpoint: str) -> float:
    return 100 * row.score(checkpoint)


def _best(rows: Sequence[Row]) -> tuple[float, float | None] | None:
    if any(row.score("best") is None for row in rows):
        return None
    return statistics.mean_std([_percent(row, "best") for row in rows])


def _difference(
    own: Sequence[Row], base: Sequence[Row] | None, interval: str, checkpoint: str
) -> tuple[Interval | None, int, str]:
    """The difference, how many pairs it has, and in words what its interval is over."""
    if base is None:
        return None, 0, "one teacher" if _is_one_teacher(own) else ""
    values, others = ({row.key: _percent(row, checkpoint) for row in rows} for rows in (own, base))
    differences = statistics.paired_differences(values, others)
    if differences:
        found, words = _paired(differences, bool(own[0].teachers) != bool(base[0].teachers), interval)
    else:
        (units, level), (base_units, base_level) = map(statistics.nested_units, (values, others))
        found = statistics.UNPAIRED[interval](units, base_units)
        words = f"unpaired, {_units(units, level)} and {_units(base_units, base_level)}"
    one = _is_one_teacher(own) or _is_one_teacher(base)
    return found, len(differences), f"one teacher, {words}" if one else words


def _paired(differences: Mapping[tuple, float], shared: bool, interval: str) -> tuple[Interval, str]:
    """The interval, and what it is over.

    Where students of several teachers stand beside the same runs without a teacher (`shared`), the chance in these is
    in all teachers' differences alike, and does not show between them: the interval over their seeds may be wider.
    The wider of the two is taken. Of 5 teachers and 5 seeds that vary alike it covers 94 %, of many as few as 83 %.
    """
    units, level = statistics.nested_units(differences)
    over_teachers = statistics.INTERVALS[interval](units)
    if shared and statistics.LEVELS[level] == "teachers":
        seeds = statistics.seed_means(differences)
        over_seeds = statistics.INTERVALS[interval](seeds)
        if over_seeds.high - over_seeds.low > over_teachers.high - over_teachers.low + 1e-9:
            return over_seeds, f"{_units(seeds, statistics.LEVELS.index('seeds'))} beside {_units(units, level)}"
    return over_teachers, _units(units, level)


def _is_one_teacher(rows: Sequence[Row]) -> bool:
    return len({row.teacher_runs for row in rows}) == 1 and bool(rows[0].teacher_runs)


def _units(units: Sequence[float], level: int) -> str:
    return f"{len(units)} {statistics.LEVELS[level]}" if len(units) > 1 else "one run"


def _test_error(rows: Sequence[Row], correct: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Standard error of the mean accuracy in %, and how it was found."""
    sizes = [row.test[1] for row in rows if row.test]
    seen = [row for row in rows if row.name in correct]
    if seen:
        errors = [statistics.bootstrap_error(correct[row.name][None]) for row in seen]
        return 100 * float(np.mean(errors)) * _of_several_sets(rows), "bootstrap"
    if not sizes:
        return 0.0, "unknown"
    accuracy = statistics.mean_std([row.score("last") for row in rows])[0]
    return 100 * statistics.binomial_error(accuracy, float(np.mean(sizes))) * _of_several_sets(rows), "binomial"


def _of_several_sets(rows: Sequence[Row]) -> float:
    """What several splits' test sets leave of one's error: drawn from the same examples, they share a part of these."""
    sets = {row.test for row in rows if row.test}
    share = float(np.mean([row.held_out for row in rows]))
    return math.sqrt((1 + (len(sets) - 1) * share) / len(sets)) if sets else 1.0


def _difference_error(own: Sequence[Row], base: Sequence[Row], correct: Mapping[str, np.ndarray]) -> float:
    """In %: bootstrap over examples that both runs of a pair saw, else as if the two test sets were independent."""
    partners = {(row.split, row.seed): row for row in base if row.name in correct}
    for row in own:
        partner = partners.get((row.split, row.seed))
        if row.name in correct and partner and row.test == partner.test:
            gained = correct[row.name].astype(float) - correct[partner.name]
            return 100 * statistics.bootstrap_error(gained[None]) * _of_several_sets(own)
    return math.hypot(_test_error(own, {})[0], _test_error(base, {})[0])
