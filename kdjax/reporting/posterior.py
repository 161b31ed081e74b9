"""The tables of the posterior study: teachers, their distance to p*, their students, and paired differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.statistics import spearman
from kdjax.reporting.tables import markdown, spread


def report(study: Any, outcome: Any) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'posterior'.
      outcome: what `studies.posterior.run` returned.
    """
    methods = [method for method in study.methods if method not in study.alone]
    parts = [
        f"# {study.title}",
        f"Bayes accuracy on the test split: {outcome.bayes:.2%}. Accuracies in %; ± is the standard deviation over "
        f"{study.seeds} teacher seeds, a teacher's students averaged first ({study.student_seeds} each). Distance: "
        "mean squared distance to p*, summed over classes, on the test split. p* is one teacher.",
        _teacher_table(outcome, methods),
        "Differences between students of teachers of one seed, [ ] a 95 % t interval over the teacher seeds:",
        _contrast_table(study, outcome, methods),
        f"Over all {len(outcome.teachers)} teachers, Spearman's rank correlation of distance and students' accuracy: "
        + ", ".join(f"{method} {_spearman(outcome, method):+.2f}" for method in methods)
        + ".",
        "Chosen on validation, with seeds that are not reported: " + _choices(outcome.choices) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def figures(study: Any, outcome: Any) -> list[Figure]:
    """Returns figure 1 of Hamidi et al.: a teacher's distance to p* against its students' accuracy, by method.

    Args:
      study: of kind 'posterior'.
      outcome: what `studies.posterior.run` returned.
    """
    drawn = []
    for method in (method for method in study.methods if method not in study.alone):
        series = []
        for kind in dict.fromkeys(teacher.kind for teacher in outcome.teachers):
            group = [teacher for teacher in outcome.teachers if teacher.kind == kind]
            means = _means(outcome, method, kind)
            series.append(Series(kind, [t.distance for t in group], [100 * means[t.seed] for t in group]))
        axes = ("teacher's squared distance to p*", "students' test accuracy [%]")
        caption = f"Each point is a teacher with the mean of its {study.student_seeds} students; p* is at 0."
        bayes = {"Bayes accuracy": 100 * outcome.bayes}
        drawn.append(scatter(f"distance-{method.lower()}", f"Students by {method}", caption, axes, series, bayes))
    return drawn


def _teacher_table(outcome: Any, methods: list[str]) -> str:
    rows = []
    for kind in dict.fromkeys(teacher.kind for teacher in outcome.teachers):
        group = [teacher for teacher in outcome.teachers if teacher.kind == kind]
        own = [spread([100 * t.accuracy for t in group]), spread([t.distance for t in group], 4)]
        students = [spread([100 * v for v in _means(outcome, method, kind).values()]) for method in methods]
        rows.append((kind, *own, spread([t.entropy for t in group], 3), *students, len(group)))
    for method in dict.fromkeys(s.method for s in outcome.students if not s.kind):
        alone = [100 * s.accuracy for s in outcome.students if s.method == method]
        rows.append((f"(student {method})", "", "", "", *[spread(alone)] * len(methods), len(alone)))
    rows.append(("(Bayes accuracy)", f"{100 * outcome.bayes:.2f}", *[""] * (len(methods) + 3)))
    header = ("teacher", "accuracy", "distance to p*", "entropy, nats", *(f"student, {m}" for m in methods), "n")
    return markdown(header, rows)


def _contrast_table(study: Any, outcome: Any, methods: list[str]) -> str:
    rows = []
    for first, second in study.contrasts:
        cells = []
        for method in methods:
            a, b = _means(outcome, method, first), _means(outcome, method, second)
            cells.append(interval([100 * (a.get(seed, a.get(0)) - b[seed]) for seed in b]))
        distances = [{t.seed: t.distance for t in outcome.teachers if t.kind == kind} for kind in (first, second)]
        nearer = [distances[0].get(seed, distances[0].get(0)) - distances[1][seed] for seed in distances[1]]
        rows.append((f"{first} − {second}", interval(nearer, 4), *cells))
    return markdown(("teachers", "distance", *(f"students, {method}" for method in methods)), rows)


def _means(outcome: Any, method: str, kind: str) -> dict[int, float]:
    """Teacher seed -> mean accuracy of its students."""
    found: dict[int, list[float]] = {}
    for student in outcome.students:
        if (student.method, student.kind) == (method, kind):
            found.setdefault(student.teacher_seed, []).append(student.accuracy)
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _spearman(outcome: Any, method: str) -> float:
    accuracies = [_means(outcome, method, t.kind)[t.seed] for t in outcome.teachers]
    return spearman([t.distance for t in outcome.teachers], accuracies)


def _choices(choices: Mapping[str, Any]) -> str:
    said = []
    for name, value in choices.items():
        if isinstance(value, Mapping):
            terms = "; ".join(f"{key} {dict(term)}" for key, term in value["losses"].items())
            said.append(f"{name}: {terms} (entropy {value['entropy']:.3f} against {value['entropy of MSE']:.3f})")
        else:
            said.append(f"{name} {value:g}")
    return ", ".join(said)
