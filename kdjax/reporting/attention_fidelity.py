"""The tables of the attention and fidelity study: students by their teachers' views, and what goes with accuracy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.reporting import statistics
from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.tables import markdown, spread


class Measure(NamedTuple):
    """How a score is shown.

    Attributes:
      key: in the scores of a student.
      scale: that it is multiplied by.
      digits: after the point.
      claim: the sign of what stronger views do to it in the paper, '' where it says nothing.
    """

    key: str
    scale: float = 100.0
    digits: int = 2
    claim: str = ""


OUTCOMES = {
    "accuracy, last": Measure("accuracy", claim="+"),
    "accuracy, best": Measure("best", claim="+"),
    "validation": Measure("validation", claim="+"),
    "over-fitting gap": Measure("gap", claim="−"),
}
TEACHERS = {
    "teachers' agreement": Measure("teachers_agreement"),
    "teachers' agreement in view": Measure("teachers_agreement_in_view", claim="−"),
    "teachers' IoU": Measure("teachers_iou", claim="−"),
    "teachers' IoU, Grad-CAM": Measure("teachers_grad_cam_iou"),
}
FIDELITY = {
    "agreement": Measure("agreement", claim="−"),
    "agreement in view": Measure("agreement_in_view", claim="−"),
    "information": Measure("information", 1.0, 3, claim="−"),
    "information in view": Measure("information_in_view", 1.0, 3, claim="−"),
    "IoU": Measure("iou"),
    "IoU, Grad-CAM": Measure("grad_cam_iou"),
}
NAMES = {"w": "weak", "s": "strong"}


def report(study: Any, outcome: Sequence[Any]) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'attention_fidelity'.
      outcome: the students that `studies.attention_fidelity.run` returned.
    """
    parts = [
        f"# {study.title}",
        f"{len(study.seeds)} seeds, each with its own data split and teachers. A letter is a teacher, w trained on the "
        "weak view and s on the strong one; 'to' is the student's view. Test split, last checkpoint; accuracies, "
        "agreements and IoU in %, mutual information in nats; ± is the standard deviation over seeds, [ ] a 95 % t "
        "interval of paired differences over seeds. Agreement and information are those of the teachers' mean logits "
        "with the student, on clean images and 'in view', on images under the student's view; IoU is that of "
        "class-activation maps on clean images.",
        _table(outcome, OUTCOMES, alone=True),
        _table(outcome, {**TEACHERS, **FIDELITY}),
        "Strong less weak view, of all teachers at a student's view, of the student with the same teachers, and of all "
        "of them; means over the rest, and what the paper says of stronger views:",
        _contrasts(outcome),
        "Spearman's rank correlation with last test accuracy over settings: of their means, and within a seed, mean "
        "and 95 % t interval over seeds, for all settings and those of one student's view:",
        _correlations(outcome),
    ]
    return "\n\n".join(parts) + "\n"


def figures(study: Any, outcome: Sequence[Any]) -> list[Figure]:
    """Returns accuracy against fidelity and against the overlap of the teachers' attention, a point a student.

    Args:
      study: of kind 'attention_fidelity'.
      outcome: the students that `studies.attention_fidelity.run` returned.
    """
    drawn = []
    for key, words in (("agreement", "agreement with the teachers"), ("teachers_iou", "IoU of the teachers' maps")):
        series = []
        for view, name in NAMES.items():
            scores = [student.scores for student in outcome if student.view == view and key in student.scores]
            points = [[100 * own[k] for own in scores] for k in (key, "accuracy")]
            series.append(Series(f"student on the {name} view", *points))
        axes = (f"{words} [%]", "student's test accuracy [%]")
        drawn.append(scatter(key, f"Accuracy by {words}", "Each point is a student, on clean images.", axes, series))
    return drawn


def _table(students: Sequence[Any], measures: dict[str, Measure], alone: bool = False) -> str:
    rows = []
    for team, view in dict.fromkeys((s.team, s.view) for s in students if s.team or alone):
        group = [s for s in students if (s.team, s.view) == (team, view)]
        cells = [_spread([s.scores.get(measure.key) for s in group], measure) for measure in measures.values()]
        gain = [_gain(students, team, view) if team else ""] if alone else []
        rows.append((team or "alone", NAMES.get(view, view), *cells, *gain, len(group)))
    gain = ["last − alone"] if alone else []
    return markdown(("teachers", "to", *measures, *gain, "n"), rows)


def _spread(values: Sequence[float | None], measure: Measure) -> str:
    if None in values:
        return "-"
    return spread([measure.scale * value for value in values], measure.digits)


def _gain(students: Sequence[Any], team: str, view: str) -> str:
    at = {(s.team, s.view, s.seed): 100 * s.scores["accuracy"] for s in students}
    seeds = [seed for t, v, seed in at if (t, v) == (team, view)]
    return interval([at[team, view, seed] - at["", view, seed] for seed in seeds])


def _contrasts(students: Sequence[Any]) -> str:
    at = {(s.team, s.view, s.seed): s.scores for s in students}
    pairs = {
        "teachers": lambda team, view: (team.replace("w", "s"), view) if set(team) == {"w"} else None,
        "student": lambda team, view: (team, "s") if team and view == "w" else None,
        "both": lambda team, view: (team.replace("w", "s"), "s") if set(team) == {"w"} and view == "w" else None,
    }
    rows = []
    for name, measure in {**OUTCOMES, **TEACHERS, **FIDELITY}.items():
        cells = [_contrast(at, pair, measure) for pair in pairs.values()]
        rows.append((name, *cells, measure.claim))
    return markdown(("strong − weak", *pairs, "paper"), rows)


def _contrast(at: dict, pair: Any, measure: Measure) -> str:
    """A seed's mean difference over all settings that have a stronger partner, its interval over seeds.

    '-' where there is none, or none but 0: teachers on clean images do not know the student's view.
    """
    differences: dict[int, list[float]] = {}
    for (team, view, seed), scores in at.items():
        partner = pair(team, view)
        stronger = at.get((*partner, seed), {}) if partner else {}
        if measure.key in scores and measure.key in stronger:
            difference = measure.scale * (stronger[measure.key] - scores[measure.key])
            differences.setdefault(seed, []).append(difference)
    means = [np.mean(values) for values in differences.values()]
    return interval(means, measure.digits) if np.any(means) else "-"


def _correlations(students: Sequence[Any]) -> str:
    groups = {"all": students, **{f"to {name}": [s for s in students if s.view == v] for v, name in NAMES.items()}}
    rows = []
    for name, measure in {"over-fitting gap": OUTCOMES["over-fitting gap"], **TEACHERS, **FIDELITY}.items():
        cells = [cell for group in groups.values() for cell in _correlation(group, measure.key)]
        rows.append((name, *cells))
    header = [title for group in groups for title in (f"{group}, means", f"{group}, within a seed")]
    return markdown(("accuracy with", *header), rows)


def _correlation(students: Sequence[Any], key: str) -> tuple[str, str]:
    """Of the settings' means, and of the settings within each seed; '-' where there is none."""
    having = [s for s in students if s.team and key in s.scores]
    settings: dict[tuple, list] = {}
    for student in having:
        settings.setdefault((student.team, student.view), []).append((student.scores[key], student.scores["accuracy"]))
    means = [np.mean(values, axis=0) for values in settings.values()]
    of_means = statistics.spearman([x for x, _ in means], [y for _, y in means])
    within = []
    for seed in dict.fromkeys(s.seed for s in having):
        own = [s.scores for s in having if s.seed == seed]
        within.append(statistics.spearman([scores[key] for scores in own], [scores["accuracy"] for scores in own]))
    within = [value for value in within if not np.isnan(value)]
    return ("-" if np.isnan(of_means) else f"{of_means:+.2f}"), (interval(within) if within else "-")
