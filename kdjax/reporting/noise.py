"""The tables of the noise study: students by their targets, and what their distance to p* says of accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.tables import markdown, spread

RESAMPLES = 2000


def report(study: Any, outcome: Any) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'noise'.
      outcome: what `studies.noise.run` returned.
    """
    parts = [
        f"# {study.title}",
        f"Bayes accuracy on the test split: {outcome.bayes:.2%}. Accuracies in %, ± is the standard deviation over "
        f"{study.seeds} students; distances are squared, summed over classes, means over examples. "
        "The learning rate of each row is its best on validation, by a seed that is not reported.",
        _students(outcome.points),
        "Spearman's rank correlation of the targets' distance to p* with the student's test accuracy, [ ] a 95 % "
        f"bootstrap interval over students ({RESAMPLES} resamples) of one data set:",
        _correlations(outcome.points),
    ]
    return "\n\n".join(parts) + "\n"


def figures(study: Any, outcome: Any) -> list[Figure]:
    """Returns students' accuracy against the distance of their targets, and against their own.

    Args:
      study: of kind 'noise'.
      outcome: what `studies.noise.run` returned.
    """
    drawn = []
    for name, of, field in (("targets", "targets'", "target_distance"), ("own", "student's", "distance")):
        series = []
        for other in dict.fromkeys(point.other for point in outcome.points):
            group = [point for point in outcome.points if point.other == other]
            label = f"p* mixed with {other}"
            series.append(Series(label, [getattr(p, field) for p in group], [100 * p.accuracy for p in group]))
        axes = (f"{of} squared distance to p*", "student's test accuracy [%]")
        title, caption = f"Accuracy by the {of} distance to p*", "Each point is a student."
        levels = {"p* itself": 100 * outcome.bayes}
        drawn.append(scatter(f"accuracy-by-{name}", title, caption, axes, series, levels))
    return drawn


def _students(points: Sequence[Any]) -> str:
    rows = []
    for other, epsilon in dict.fromkeys((point.other, point.epsilon) for point in points):
        group = [point for point in points if (point.other, point.epsilon) == (other, epsilon)]
        cells = (
            f"{group[0].rate:g}",
            spread([100 * p.accuracy for p in group], 2),
            spread([p.distance for p in group], 4),
            len(group),
        )
        rows.append((other, f"{epsilon:g}", f"{group[0].target_distance:.4f}", *cells))
    header = ("p* mixed with", "epsilon", "targets to p*", "rate", "student accuracy", "student to p*", "n")
    return markdown(header, rows)


def _correlations(points: Sequence[Any]) -> str:
    rows = []
    groups = {other: [p for p in points if p.other == other] for other in dict.fromkeys(p.other for p in points)}
    if len(groups) > 1:
        groups["both"] = list(points)
    for name, group in groups.items():
        accuracies = [p.accuracy for p in group]
        cells = (spearman(xs, accuracies) for xs in ([p.target_distance for p in group], [p.distance for p in group]))
        rows.append((name, *cells, len(group)))
    return markdown(("p* mixed with", "targets' distance", "student's own distance", "n"), rows)


def spearman(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Returns Spearman's rank correlation with its 95 % percentile bootstrap interval over pairs, '-' below four."""
    from scipy.stats import spearmanr

    if len(xs) < 4:
        return "-"
    xs, ys = np.asarray(xs), np.asarray(ys)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(0, len(xs), len(xs))
        if np.ptp(xs[chosen]) > 0 and np.ptp(ys[chosen]) > 0:  # else there is no correlation
            found.append(spearmanr(xs[chosen], ys[chosen]).statistic)
    low, high = np.percentile(found, [2.5, 97.5])
    return f"{spearmanr(xs, ys).statistic:+.2f} [{low:+.2f}, {high:+.2f}]"
