"""The table of a study: accuracies over seeds, and paired differences with their intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.reporting.tables import markdown


class Score(NamedTuple):
    """One run of a study.

    Attributes:
      student: name in the study, '' for a teacher.
      teacher: name in the study, '' for a student alone.
      seed: of initial weights and order.
      split: seed of the data split; with the seed it pairs runs across rows.
      losses: names of the losses it was trained with.
      result: its result.json.
    """

    student: str
    teacher: str
    seed: int
    split: int
    losses: tuple[str, ...]
    result: dict


def study_report(title: str, baseline: str, scores: Sequence[Score]) -> str:
    """Returns a study's table in Markdown.

    A row: test accuracy of the last and of the best-by-validation checkpoint, mean ± standard deviation over runs, and
    the mean difference of last to the baseline student's with the same seed and split, with a 95 % interval.

    Args:
      title: of the study.
      baseline: the student that the differences are against.
      scores: of all runs.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.student, score.teacher), []).append(score)
    base = {(score.split, score.seed): _test(score, "last") for score in groups[(baseline, "")]}
    rows, noise = [], []
    for (student, teacher), group in groups.items():
        difference = "" if student in ("", baseline) else _difference(group, base)
        rows.append((
            student or "(teacher)", teacher or "-", " + ".join(group[0].losses), _spread(group, "last"),
            _spread(group, "best"), difference and difference[0], len(group),
        ))  # fmt: skip
        if difference and difference[1]:
            noise.append(f"{student} from {teacher}")
    header = ("student", "teacher", "loss", "last, %", "best, %", f"last − {baseline} [95 %]", "n")
    return f"# {title}\n\n{markdown(header, rows)}\n\n{_noise_sentence(noise, baseline, groups)}\n"


def _test(score: Score, checkpoint: str) -> float:
    return 100 * score.result.get(checkpoint, score.result["last"])["test"]["accuracy"]


def _spread(group: Sequence[Score], checkpoint: str) -> str:
    if any(checkpoint not in score.result for score in group):
        return "-"
    values = [_test(score, checkpoint) for score in group]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _difference(group: Sequence[Score], base: dict[tuple[int, int], float]) -> tuple[str, bool]:
    """The paired difference as text, and whether its interval holds zero.

    Runs on one split share their test images and are no independent draws: the interval is that of the splits' means.
    """
    by_split: dict[int, list[float]] = {}
    for score in group:
        by_split.setdefault(score.split, []).append(_test(score, "last") - base[score.split, score.seed])
    means = [np.mean(differences) for differences in by_split.values()]
    mean, half = np.mean(means), _half_width(means)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]", bool(abs(mean) <= half)


def _half_width(values: Sequence[float]) -> float:
    """Half a 95 % t interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return float("inf")
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def _noise_sentence(noise: Sequence[str], baseline: str, groups: dict) -> str:
    students = [key for key in groups if key[0] not in ("", baseline)]
    if not students:
        return "No student but the baseline was trained."
    if not noise:
        return f"No difference to the student '{baseline}' is inside the noise (every 95 % interval excludes zero)."
    return f"Inside the noise (the 95 % interval of the difference to '{baseline}' holds zero): {'; '.join(noise)}."
