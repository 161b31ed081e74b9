"""The tables and the figures of a study of teachers, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdjax import analysis
from kdjax.reporting.figures import Figure, Series, forest, reliability_diagrams, scatter
from kdjax.reporting.statistics import difference_interval
from kdjax.reporting.tables import bounds, markdown, spread
from kdjax.studies.results import ResultRow, Results
from kdjax.studies.teacher_contrasts import (
    Contrast,
    Students,
    accuracies,
    correlations,
    distances,
    overlap_of,
    scores_of,
    student_contrast,
    verdict,
)

if TYPE_CHECKING:
    from kdjax.studies.which_teacher import WhichTeacherStudy


def report(study: WhichTeacherStudy, results: Results) -> str:
    """Returns the study's design and its tables in Markdown."""
    return f"# {study.title}\n\n{study.design}\n\n{tables(study, results)}\n"


def tables(study: WhichTeacherStudy, results: Results) -> str:
    """Returns the tables in Markdown; before the last seed has ended only the pilot's, so that nobody looks."""
    left = [seed for seed in study.seeds if seed not in results.finished]
    if left:
        finished = f"{len(study.seeds) - len(left)} of {len(study.seeds)} seeds are finished"
        done = f"{finished}; comparisons are shown after the last one."
        return "\n\n".join([done, _pilot_text(study, results)])
    near, better = distances(study, results), accuracies(study, results)
    parts = [
        f"Verdict, by the rule of the design: **{verdict(near, better, study.margin)}**.",
        contrast_table(study, results),
        f"Means over seeds {_listed(study.seeds)}; ± is the standard deviation of students' accuracies. "
        f"'gain' is the mean of {' and '.join(study.scored)}, in points, less that of the students of "
        f"{study.baselines[0]}. [ ] are 95 % intervals.{_about_distances(study)}",
        teacher_table(study, results),
        _schedule_text(study, results),
        _correlation_text(study, results),
        _pilot_text(study, results),
    ]
    return "\n\n".join(part for part in parts if part)


def _listed(seeds: Sequence[int]) -> str:
    whole = tuple(range(seeds[0], seeds[-1] + 1)) == tuple(seeds) and len(seeds) > 2
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _about_distances(study: WhichTeacherStudy) -> str:
    if study.data == "posterior":
        return " Distances are squared, to p*, summed over classes."
    if study.data == "annotators":
        return (
            " Distances are squared, summed over classes, to the labels of people who were held out: they are as much "
            "larger than the distances to p* as these people disagree, for every teacher. NLL and calibration error "
            "are measured on unseen images, against the same people."
        )
    return ""


def _pilot_text(study: WhichTeacherStudy, results: Results) -> str:
    if not results.choices:
        return ""
    gate = results.choices.get("gate")
    text = f"All cells of the pilot (seeds {_listed(study.pilot)}, never reported):"
    if gate:
        word = "passed" if gate["passed"] else "not passed, so that the study has the other setting"
        text = f"The gate's {study.gates[0].measure} was {gate['value']:.3f}: {word}. {text}"
    return f"{text}\n\n{pilot_table(results)}"


def _schedule_text(study: WhichTeacherStudy, results: Results) -> str:
    """Says what the plain teacher's students gain over students alone, without which teachers cannot be judged."""
    method, plain = study.scored[0], study.baselines[0]
    gain = student_contrast(study, results, Students(plain, (method,)), Students("", ("alone",)))
    text = f"Students of {plain} by {method} less students alone: {_words(gain, 2)}."
    if gain.interval.low <= 0 <= gain.interval.high:
        text += " This interval holds zero: the schedule is too short, or the task too easy, to judge teachers."
    return text


def _correlation_text(study: WhichTeacherStudy, results: Results) -> str:
    """Returns the rank correlations of teachers' measures with their students' accuracy, '' for few teachers."""
    found = []
    for measure in MEASURES:
        values = list(correlations(study, results, measure).values())
        if values and all(map(math.isfinite, values)):
            each = difference_interval(values, overlap=overlap_of(study))
            each = each._replace(low=max(each.low, -1), high=min(each.high, 1))
            found.append(f"{MEASURES[measure][0]} {each.mean:+.2f}{bounds(each) or ' (one draw)'}")
    if not found:
        return ""
    return (
        "Spearman's rank correlation, over the teachers of a seed, of a measure with the students' mean accuracy, "
        f"[ ] a 95 % t interval over seeds: {', '.join(found)}."
    )


def figures(study: WhichTeacherStudy, results: Results) -> list[Figure]:
    """Returns differences with intervals, distance against students' accuracy, and reliability; [] before the end."""
    if not set(study.seeds) <= set(results.finished):
        return []
    taught = [name for name, reading in study.teachers.items() if reading.taught]
    others = [name for name in taught if name != study.baselines[0]]
    gains = {name: _gain_of(study, results, Students(name, study.scored)) for name in others}
    caption = f"Students' test accuracy, less that of the students of {study.baselines[0]}; 95 % intervals over seeds."
    known = {name: gain.interval for name, gain in gains.items() if gain.interval.units > 1}
    drawn = [forest("gains", "Gain of the students", caption, "points of test accuracy", known)] if known else []
    measure = "seen" if any("seen" in row.scores for row in results.of("teacher")) else "nll"
    series = [_points(study, results, name, measure) for name in taught]
    axes = (f"teacher's {MEASURES[measure][0]}", "students' mean test accuracy [%]")
    drawn.append(scatter(f"{measure}", "Teachers and their students", "Each point is a seed.", axes, series))
    bins = {name: _reliability(results.of("teacher", teacher=name)) for name in study.teachers}
    caption = "On images that the teachers have not seen, all seeds together."
    drawn.append(reliability_diagrams("reliability", "Reliability of the teachers", caption, bins))
    return drawn


def _points(study: WhichTeacherStudy, results: Results, name: str, measure: str) -> Series:
    scores = scores_of(study, results, name)
    rows = [row for row in results.of("teacher", teacher=name) if measure in row.scores and row.seed in scores]
    return Series(name, [row.scores[measure] for row in rows], [scores[row.seed] for row in rows])


def _reliability(rows: Sequence[ResultRow]) -> analysis.Reliability:
    sums = np.sum([row.bins for row in rows if row.bins], axis=0)
    count = np.maximum(sums[:, 0], 1e-9)
    empty = np.where(sums[:, 0] > 0, 1.0, np.nan)
    edges = np.linspace(0, 1, len(sums) + 1)
    return analysis.Reliability(edges, sums[:, 0].astype(int), empty * sums[:, 1] / count, empty * sums[:, 2] / count)


def contrast_table(study: WhichTeacherStudy, results: Results) -> str:
    """Returns the table of the differences between the challenger and each baseline."""
    rows = []
    near = {contrast.baseline: contrast for contrast in distances(study, results)}
    for better in accuracies(study, results):
        seen = (_words(near[better.baseline], 4),) if near else ()
        each = [_by_method(study, results, study.challenger, better.baseline, m) for m in study.methods]
        rows.append((f"{study.challenger} − {better.baseline}", *seen, *(_words(c, 2) for c in (better, *each))))
    known = ("seen distance",) if near else ()
    header = ("difference", *known, "students, mean", *(f"students, {method}" for method in study.methods))
    return markdown(header, rows)


def _by_method(study: WhichTeacherStudy, results: Results, own: str, base: str, method: str) -> Contrast:
    return student_contrast(study, results, Students(own, (method,)), Students(base, (method,)))


def _words(contrast: Contrast, digits: int) -> str:
    if not contrast.interval.units:
        return "diverged"
    mark = " (diverged)" if contrast.diverged else ""
    return f"{contrast.interval.mean:+.{digits}f}{bounds(contrast.interval, digits) or ' (one draw)'}{mark}"


MEASURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("test accuracy", lambda value: f"{100 * value:.2f}"),
    "nll": ("NLL", lambda value: f"{value:.3f}"),
    "ece": ("calibration error", lambda value: f"{value:.3f}"),
    "seen": ("distance, seen", lambda value: f"{value:.4f}"),
    "unseen": ("distance, unseen", lambda value: f"{value:.4f}"),
}


def teacher_table(study: WhichTeacherStudy, results: Results) -> str:
    """Returns the table of teachers and controls: means over seeds, students' accuracy by method, and the gain.

    A teacher of which some run diverged has a second row, in which such runs count at what they had reached.
    """
    found = [name for name in MEASURES if any(name in row.scores for row in results.of("teacher"))]
    costly = any(trained.passes != 1 for trained in study.runs.values())
    rows = []
    for name, reading in study.teachers.items():
        cost = (f"{study.runs[reading.run].passes:g}",) if costly else ()
        for label, kept in _with_and_without_diverged(name, results):
            cells = [_mean_cell(kept["teacher"], measure) for measure in found]
            taught = [[row for row in kept["student"] if row.method == method] for method in study.methods]
            gain = _gain(study, results, name) if reading.taught else "-"
            rows.append((label, *cost, *cells, *map(_accuracy_cell, taught), gain, len(kept["teacher"])))
    for control in study.controls:
        group = results.of("student", teacher="", method=control)
        blank = ["-"] * (len(found) + costly)
        gain = _words(_gain_of(study, results, Students("", (control,))), 2)
        rest = ["-"] * (len(study.methods) - 1)
        rows.append((f"({control})", *blank, _accuracy_cell(group), *rest, gain, len(group)))
    costs = ("passes",) if costly else ()
    header = ("teacher", *costs, *(MEASURES[name][0] for name in found), *study.methods, "gain", "n")
    return markdown(header, rows)


def _with_and_without_diverged(name: str, results: Results) -> list[tuple[str, dict[str, list[ResultRow]]]]:
    every = {part: results.of(part, teacher=name) for part in ("teacher", "student")}
    kept = {part: [row for row in rows if not row.diverged] for part, rows in every.items()}
    return [(name, kept)] if kept == every else [(name, kept), (f"{name}, diverged runs counted", every)]


def _gain_of(study: WhichTeacherStudy, results: Results, own: Students) -> Contrast:
    """Returns the difference of a group of students from those of the plain baseline."""
    return student_contrast(study, results, own, Students(study.baselines[0], study.scored))


def _gain(study: WhichTeacherStudy, results: Results, name: str) -> str:
    if name == study.baselines[0]:
        return "0"
    return _words(_gain_of(study, results, Students(name, study.scored)), 2)


def _mean_cell(rows: Sequence[ResultRow], measure: str) -> str:
    values = [row.scores[measure] for row in rows if row.scores.get(measure) is not None]
    return MEASURES[measure][1](float(np.mean(values))) if values else "-"


def _accuracy_cell(rows: Sequence[ResultRow]) -> str:
    return spread([100 * row.scores["accuracy"] for row in rows]) or "-"


def pilot_table(results: Results) -> str:
    """Returns the table of all cells that the pilot tried, means over its seeds; the chosen ones are bold."""
    cells: dict[tuple[str, str], dict[float, list[ResultRow]]] = {}
    for row in results.of("pilot"):
        setting = row.run.partition(f"-s{row.seed}")[2].removeprefix("-n")  # training images, where a gate changed them
        cells.setdefault((row.teacher, setting), {}).setdefault(row.rate, []).append(row)
    rows = []
    for (kind, setting), rates in cells.items():
        chosen = results.choices["rates"][kind]
        tried = [_cell(rate, rates[rate], chosen) for rate in sorted(rates)]
        rows.append((f"{kind}, {setting} images" if setting else kind, ", ".join(tried)))
    return markdown(("kind of run", "rate: validation accuracy"), rows)


def _cell(rate: float, rows: Sequence[ResultRow], chosen: float) -> str:
    mean = 100 * float(np.mean([row.scores["validation"] for row in rows]))
    text = f"{rate:g}: {mean:.2f}" + (" (diverged)" if any(row.diverged for row in rows) else "")
    return f"**{text}**" if rate == chosen else text
