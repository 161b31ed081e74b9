"""The differences between teachers that a study decides by, from its rows alone: contrasts, the rule, correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax.reporting.statistics import Interval, difference_interval, spearman
from kdjax.studies.results import ResultRow, Results, by_seed, unpack
from kdjax.studies.teacher_measures import DATA

if TYPE_CHECKING:
    from kdjax.studies.which_teacher import WhichTeacherStudy

HOLDS, PLAIN, FAILS, UNKNOWN = "holds", "only against plain CE", "does not hold", "cannot tell"


class Contrast(NamedTuple):
    """A difference between the challenger and a baseline.

    Attributes:
      baseline: Name of the baseline.
      interval: Interval of the difference over seeds.
      diverged: Whether a run in it diverged.
    """

    baseline: str
    interval: Interval
    diverged: bool


class Students(NamedTuple):
    """A group of students: those of a teacher by some methods, or with '' for the teacher those of some controls."""

    teacher: str
    methods: tuple[str, ...]


def verdict(near: Sequence[Contrast], better: Sequence[Contrast], margin: float) -> str:
    """Returns the verdict on a claim, by the rule that every design of these studies states.

    Args:
      near: Differences of the distance, challenger less each baseline, the plain one first; () where it is not known.
        The claim is that they are below 0.
      better: Differences of the students' accuracy in points, likewise. The claim is that they are above 0.
      margin: Differences of accuracy within this many points are no difference that matters.
    """
    if any(contrast.diverged for contrast in (*near, *better)):
        return UNKNOWN
    below, above = ([contrast.interval for contrast in group] for group in (near, better))
    if all(each.high < 0 for each in below) and all(each.low > 0 for each in above):
        return HOLDS
    if len(above) > 1 and all(each.high < 0 for each in below[:1]) and above[0].low > 0:
        return PLAIN
    wrong = any(each.low > 0 for each in below) or any(each.high < 0 for each in above)
    if wrong or all(-margin < each.low and each.high < margin for each in above):
        return FAILS
    return UNKNOWN


def distances(study: WhichTeacherStudy, results: Results) -> list[Contrast]:
    """Returns the differences of the teachers' distance on seen images; [] where it is not known."""
    if not any("seen" in row.scores for row in results.of("teacher")):
        return []
    return [_distance_contrast(study, results, baseline) for baseline in study.baselines]


def _distance_contrast(study: WhichTeacherStudy, results: Results, baseline: str) -> Contrast:
    groups = [results.of("teacher", teacher=name) for name in (study.challenger, baseline)]
    if any(row.diverged for group in groups for row in group):
        return Contrast(baseline, Interval(math.nan, -math.inf, math.inf, 0), True)
    own, base = ({row.seed: row.scores["seen"] for row in group} for group in groups)
    return Contrast(baseline, difference_interval([own[seed] - base[seed] for seed in own]), False)


def accuracies(study: WhichTeacherStudy, results: Results) -> list[Contrast]:
    """Returns the differences of the mean accuracy over the scored methods, in points."""
    own = Students(study.challenger, study.scored)
    return [student_contrast(study, results, own, Students(name, study.scored)) for name in study.baselines]


def student_contrast(study: WhichTeacherStudy, results: Results, own: Students, base: Students) -> Contrast:
    """Returns the difference, in points, of the mean accuracies of two groups of students, own less base.

    Args:
      study: The study.
      results: Its results.
      own: A group.
      base: Another group.
    """
    groups = [[row for row in results.of("student", teacher=g.teacher) if row.method in g.methods] for g in (own, base)]
    read = [group.teacher for group in (own, base) if group.teacher]
    failed = [row for name in read for row in results.of("teacher", teacher=name) if row.diverged]
    diverged = bool(failed) or any(row.diverged for group in groups for row in group)
    gains, errors = [], []
    for seed in results.finished:
        pair = [[row for row in group if row.seed == seed] for group in groups]
        if all(pair):
            means = [float(np.mean([row.scores["accuracy"] for row in rows])) for rows in pair]
            gains.append(100 * (means[0] - means[1]))
            errors.append([_mean_correct(rows) for rows in pair])
    if not gains:  # a teacher that diverged has no students
        return Contrast(base.teacher, Interval(math.nan, -math.inf, math.inf, 0), True)
    error = _test_error(errors) if DATA[study.data].tests == "same" else 0.0
    return Contrast(base.teacher, difference_interval(gains, test_error=error, overlap=overlap_of(study)), diverged)


def _mean_correct(rows: Sequence[ResultRow]) -> np.ndarray | None:
    """Returns the mean over runs of whether each test image was classified rightly, None where that is not kept."""
    if any(not row.correct for row in rows):
        return None
    return np.mean([unpack(row.correct, int(row.scores["examples"])) for row in rows], axis=0)


def _test_error(pairs: Sequence[Sequence[np.ndarray | None]]) -> float:
    """Returns the standard error, in points, of the mean paired difference of single test images."""
    kept = [own - base for own, base in pairs if own is not None and base is not None]
    if not kept:
        return 0.0
    gain = np.mean(kept, axis=0)
    return 100 * float(np.std(gain, ddof=1)) / math.sqrt(len(gain))


def overlap_of(study: WhichTeacherStudy) -> float:
    """Returns the test images per training image where splits redraw the same images, else 0."""
    if DATA[study.data].tests != "redrawn":
        return 0.0
    test = float(study.student.data.args.get("test", 0.2))
    return test / ((1 - test) * (1 - study.student.data.validation))


def correlations(study: WhichTeacherStudy, results: Results, measure: str) -> dict[int, float]:
    """Returns seed -> Spearman's rank correlation of a teacher's measure with its score; {} below four teachers."""
    taught = [name for name, reading in study.teachers.items() if reading.taught]
    scores = {name: scores_of(study, results, name) for name in taught}
    found = {}
    for seed in results.finished if len(taught) > 3 else ():
        rows = {
            row.teacher: row for row in results.of("teacher", seed=seed) if row.teacher in taught and not row.diverged
        }
        pairs = [
            (row.scores[measure], scores[name][seed])
            for name, row in rows.items()
            if row.scores.get(measure) is not None and seed in scores[name]
        ]
        if len(pairs) > 3:
            found[seed] = spearman([x for x, _ in pairs], [y for _, y in pairs])
    return found


def scores_of(study: WhichTeacherStudy, results: Results, teacher: str) -> dict[int, float]:
    """Returns seed -> mean accuracy in points of a teacher's students over the scored methods."""
    rows = [row for row in results.of("student", teacher=teacher) if row.method in study.scored]
    return by_seed(rows, lambda row: 100 * row.scores["accuracy"])
