"""The tables of the Rényi study: accuracy, entropy and distance to the transformed teacher under each loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, curves
from kdjax.reporting.tables import markdown, spread

LEVELS = ("CE", "CE, smoothed 10 %", "TTM")  # that figures show beside what varies
Panels = dict[tuple[str, str], list[Series]]  # (x label, y label) -> its lines


def report(study: Any, outcome: Sequence[Any]) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'renyi'.
      outcome: the students that `studies.renyi.run` returned.
    """
    parts = [
        f"# {study.title}",
        f"T = {study.temperature:g}; {len(study.seeds)} seeds, each with its own split and teacher. Test accuracy (%), "
        f"entropy H(q) and KL(p_T, q) to the transformed teacher (nats), of the last epoch; ± is the standard "
        f"deviation over seeds, [ ] a 95 % t interval of the paired difference to '{study.baseline}'.",
        _students(study, outcome),
        "Differences, first less second, of one seed:",
        _contrasts(study, outcome),
        "Mean entropy H(q) on training batches, by epoch:",
        _curves(study, outcome, "train_entropy"),
        "Mean KL(p_T, q) to the transformed teacher on training batches, by epoch:",
        _curves(study, outcome, "train_to_transformed"),
    ]
    return "\n\n".join(parts) + "\n"


def figures(study: Any, outcome: Sequence[Any]) -> list[Figure]:
    """Returns the three figures of Zheng & Yang, and what the coefficient of the Rényi entropy does.

    Args:
      study: of kind 'renyi'.
      outcome: what `studies.renyi.run` returned.
    """
    told = f"Mean over training batches; a band is the standard deviation over {len(study.seeds)} seeds."
    test = "On the test split, last epoch; a band is the standard deviation over seeds."
    kd = {label: terms.kd.temperature for label, terms in study.losses.items() if set(terms) == {"cross_entropy", "kd"}}
    swept = {label: _coefficient(terms) for label, terms in study.losses.items() if _is_swept(terms, study.temperature)}
    sure = _by_epoch(outcome, "train_entropy", "H(q) [nats]", ("KD", "TTM", "WTTM"))
    near = _by_epoch(outcome, "train_to_transformed", "KL(p_T, q) [nats]", ("TTM without CE", "WTTM without CE"))
    by_temperature = _against(outcome, "KD's temperature", "KD", kd)
    by_coefficient = _against(outcome, "coefficient of the Rényi entropy", "KD less the entropy", swept)
    return [
        curves("entropy-by-epoch", "How sure students are", told, sure),
        curves("distance-by-epoch", "How far students are from the transformed teacher", told, near),
        curves("entropy-by-temperature", "How sure students are by KD's temperature", test, by_temperature),
        curves("renyi-coefficient", "From KD (0) to TTM (1) and beyond", test, by_coefficient),
    ]


def _students(study: Any, students: Sequence[Any]) -> str:
    rows = []
    for label in study.losses:
        group = [student for student in students if student.label == label]
        cells = [spread([100 * s.accuracy for s in group], 2)]
        cells += [spread([getattr(s, field) for s in group], 3) for field in ("entropy", "to_transformed")]
        difference = "" if label == study.baseline else _difference(students, label, study.baseline, _accuracy, 2)
        rows.append((label, *cells, difference))
    return markdown(("losses", "accuracy", "H(q)", "KL(p_T, q)", f"accuracy − {study.baseline}"), rows)


def _contrasts(study: Any, students: Sequence[Any]) -> str:
    rows = []
    for first, second in study.contrasts:
        cells = [_difference(students, first, second, _accuracy, 2)]
        for field in ("entropy", "to_transformed"):
            cells.append(_difference(students, first, second, lambda s, field=field: getattr(s, field), 3))
        rows.append((f"{first} − {second}", *cells))
    return markdown(("losses", "accuracy", "H(q)", "KL(p_T, q)"), rows)


def _curves(study: Any, students: Sequence[Any], field: str) -> str:
    rows, epochs = [], study.student.epochs
    shown = sorted({1, *(max(1, round(epochs * part)) for part in (0.05, 0.125, 0.25, 0.5, 1))})
    for label in study.losses:
        curves = [getattr(student, field) for student in students if student.label == label]
        if all(curves):
            mean = np.mean(curves, axis=0)
            rows.append((label, *(f"{mean[epoch - 1]:.3f}" for epoch in shown)))
    return markdown(("losses", *shown), rows)


def _is_swept(terms: Any, temperature: float) -> bool:
    return "kd" in terms and terms.kd.temperature == temperature


def _coefficient(terms: Any) -> float:
    """Of the entropy that makes KD TTM, where it has weight lambda T (T - 1)."""
    whole = terms.kd.weight * terms.kd.temperature * (terms.kd.temperature - 1)
    return -terms.student_renyi.weight / whole if "student_renyi" in terms else 0.0


def _by_epoch(students: Sequence[Any], field: str, axis: str, labels: Sequence[str]) -> Panels:
    series = []
    for label in labels:
        logs = [getattr(student, field) for student in students if student.label == label]
        if logs and all(logs):
            series.append(Series(label, range(1, len(logs[0]) + 1), list(zip(*logs, strict=True))))
    return {("epoch", axis): series}


def _against(students: Sequence[Any], axis: str, name: str, places: Mapping[str, float]) -> Panels:
    """Entropy and accuracy against a number that each of some losses has; those of others as level lines."""
    panels = {}
    for measure, value in (("H(q) [nats]", lambda student: student.entropy), ("test accuracy [%]", _accuracy)):
        found = {label: [value(s) for s in students if s.label == label] for label in (*places, *LEVELS)}
        at = {places[label]: found[label] for label in places}
        series = [Series(name, sorted(at), [at[x] for x in sorted(at)])]
        series += [
            Series(label, sorted(at), [float(np.mean(found[label]))] * len(at)) for label in LEVELS if found[label]
        ]
        panels[axis, measure] = series
    return panels


def _accuracy(student: Any) -> float:
    return 100 * student.accuracy


def _difference(students: Sequence[Any], first: str, second: str, value: Callable, digits: int) -> str:
    a, b = ({s.seed: value(s) for s in students if s.label == label} for label in (first, second))
    return interval([a[seed] - b[seed] for seed in a], digits)
