"""The table of a study: accuracies over seeds, and paired differences with their intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdjax.reporting import statistics
from kdjax.reporting.tables import markdown, spread


class Score(NamedTuple):
    """One run of a study.

    Attributes:
      student: name in the study, '' for a teacher.
      teacher: name in the study, '' for a student alone.
      seed: of initial weights and order.
      split: seed of the data split; with the seed it pairs runs across rows.
      losses: names of the losses it was trained with.
      result: its result.json.
      published: accuracy (%) that a paper prints for it, None for none.
    """

    student: str
    teacher: str
    seed: int
    split: int
    losses: tuple[str, ...]
    result: dict
    published: float | None = None


Groups = dict[tuple[str, str], list[Score]]  # (student, teacher) -> its runs


def report(study: Any, outcome: Sequence[tuple]) -> str:
    """Returns a study's tables in Markdown, of the (job, result) pairs that `studies.cross.run` returned."""
    scores = [
        Score(job.student, job.teacher, job.seed, job.split, job.losses, result, job.published)
        for job, result in outcome
    ]
    return study_report(study.title, study.baseline, study.contrasts, scores)


def study_report(title: str, baseline: str, contrasts: Sequence, scores: Sequence[Score]) -> str:
    """Returns a study's tables in Markdown.

    A row of the first: test accuracy of the last and of the best-by-validation checkpoint, mean ± standard deviation
    over runs, and the mean difference of last to the baseline student's, with a 95 % interval. A row of the second: the
    same difference between two other rows. Differences are between runs of one seed and one split. What papers print
    stands beside, where a run knows it.

    Args:
      title: of the study.
      baseline: the student, trained alone, that the first table's differences are against.
      contrasts: ((student, teacher), (student, teacher)) each, the first minus the second.
      scores: of all runs.
    """
    groups: Groups = {}
    for score in scores:
        groups.setdefault((score.student, score.teacher), []).append(score)
    tables = [_rows_table(groups, baseline)]
    if contrasts:
        tables.append(_contrasts_table(groups, contrasts))
    means = "the splits' means" if len({score.split for score in scores}) > 1 else "seeds, for one test set"
    note = f"Test accuracy in %; ± is the standard deviation over runs, [ ] a 95 % t interval over {means}."
    return f"# {title}\n\n{note}\n\n" + "\n\n".join(tables) + "\n"


def _rows_table(groups: Groups, baseline: str) -> str:
    rows, published = [], any(score.published is not None for group in groups.values() for score in group)
    for (student, teacher), group in groups.items():
        reference = _baseline(groups, student, baseline)
        plain = student in ("", reference)
        difference = "" if plain else _difference(group, groups[reference, ""])
        spreads = [_spread(group, checkpoint) for checkpoint in ("last", "best")]
        printed = (("-" if group[0].published is None else f"{group[0].published:.2f}"),) if published else ()
        name, losses = student or "(teacher)", " + ".join(group[0].losses)
        rows.append((name, teacher or "-", losses, *spreads, *printed, difference, len(group)))
    header = ("last", "best", *(("published",) if published else ()), f"last − {baseline}", "n")
    return markdown(("student", "teacher", "loss", *header), rows)


def _baseline(groups: Groups, student: str, baseline: str) -> str:
    """The baseline of the student's own group, where names begin with 'GROUP: '."""
    group, separator, _ = student.partition(": ")
    own = f"{group}{separator}{baseline}"
    return own if separator and (own, "") in groups else baseline


def _contrasts_table(groups: Groups, contrasts: Sequence) -> str:
    rows = []
    for first, second in (map(tuple, pair) for pair in contrasts):
        rows.append(
            (f"{row_name(first)} − {row_name(second)}", _difference(groups[first], groups[second]), len(groups[first]))
        )
    return markdown(("difference", "last", "n"), rows)


def row_name(key: tuple[str, str]) -> str:
    """Returns the name of a row, (student, teacher), in words."""
    student, teacher = key
    if not student:
        return f"teacher {teacher}"
    return f"{student} from {teacher}" if teacher else student


def _test(score: Score, checkpoint: str) -> float:
    return 100 * score.result[checkpoint]["test"]["accuracy"]


def _spread(group: Sequence[Score], checkpoint: str) -> str:
    if any(checkpoint not in score.result for score in group):
        return "-"
    values = [_test(score, checkpoint) for score in group]
    return spread(values)


def _difference(group: Sequence[Score], other: Sequence[Score]) -> str:
    """The mean paired difference with its interval, marked where the interval holds zero.

    Runs on one split share their test images and are no independent draws: the interval is that of the splits' means.
    With one split it is that of the seeds, and says nothing of other test images.
    """
    base = {(score.split, score.seed): _test(score, "last") for score in other}
    own = {(score.split, score.seed): _test(score, "last") for score in group}
    units, _ = statistics.nested_units({place: value - base[place] for place, value in own.items()})
    return interval(units)


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Returns a mean with its 95 % t interval, marked where that holds zero; of one value there is none."""
    mean, low, high, units = statistics.t_interval(values)
    if units < 2:
        return f"{mean:+.{digits}f} (one draw)"
    noise = " (noise)" if low <= 0 <= high else ""
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{noise}"
