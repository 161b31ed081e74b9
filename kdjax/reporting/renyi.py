"""The tables of the Rényi study: accuracy, entropy and distance to the transformed teacher under each loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdjax.reporting.study import interval
from kdjax.reporting.tables import markdown


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


def _students(study: Any, students: Sequence[Any]) -> str:
    rows = []
    for label in study.losses:
        group = [student for student in students if student.label == label]
        cells = [_spread([100 * s.accuracy for s in group], 2)]
        cells += [_spread([getattr(s, field) for s in group], 3) for field in ("entropy", "to_transformed")]
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


def _accuracy(student: Any) -> float:
    return 100 * student.accuracy


def _difference(students: Sequence[Any], first: str, second: str, value: Callable, digits: int) -> str:
    a, b = ({s.seed: value(s) for s in students if s.label == label} for label in (first, second))
    return interval([a[seed] - b[seed] for seed in a], digits)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
