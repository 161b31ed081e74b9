"""Tables of a crossed study: accuracies over seeds and splits, and paired differences with their intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdjax.reporting import statistics
from kdjax.reporting.tables import bounds, markdown, spread

Row = tuple[str, str]  # (student, teacher): student '' for a teacher, teacher '' for a student without one


class Score(NamedTuple):
    """The result of one run of a study.

    Attributes:
      student: Name of the student in the study; '' for a teacher.
      teacher: Name of the teacher in the study; '' for a student without one.
      seed: Seed of initial weights and order.
      split: Seed of the data split; runs with the same seed and split are paired across rows.
      losses: Names of the losses that the run was trained with.
      result: What the run's `result.json` holds.
      published: Accuracy (%) that a paper prints for the run; None for none.
    """

    student: str
    teacher: str
    seed: int
    split: int
    losses: tuple[str, ...]
    result: Mapping
    published: float | None = None


Groups = dict[Row, list[Score]]  # row -> its runs


def study_report(
    title: str, baseline: str, contrasts: Sequence[tuple[Row, Row]], scores: Sequence[Score], overlap: float = 0.0
) -> str:
    """Returns `study_tables` below a title, in Markdown."""
    return f"# {title}\n\n{study_tables(baseline, contrasts, scores, overlap)}\n"


def study_tables(
    baseline: str, contrasts: Sequence[tuple[Row, Row]], scores: Sequence[Score], overlap: float = 0.0
) -> str:
    """Returns the tables of a crossed study in Markdown.

    A row of the first table has the test accuracy of the last and of the best checkpoint by validation, mean ± standard
    deviation over runs, the accuracy that a paper prints, where one is known, and the mean difference of the last
    accuracy from the baseline's with a 95 % interval. The second table has the same difference between other rows.
    Differences are between runs of the same seed and split.

    Args:
      baseline: Name of the student without a teacher that the first table's differences are from.
      contrasts: Pairs of rows, the first minus the second.
      scores: Results of all runs.
      overlap: Test examples per training example where splits redraw the same examples, for which the intervals are
        corrected (see `statistics.difference_interval`); 0 where they do not.
    """
    groups = _grouped(scores)
    tables = [_rows_table(groups, baseline, overlap)]
    if contrasts:
        tables.append(_contrasts_table(groups, contrasts, overlap))
    means = "the splits' means" if len({score.split for score in scores}) > 1 else "seeds, for one test set"
    note = f"Test accuracy in %; ± is the standard deviation over runs, [ ] a 95 % t interval over {means}."
    if overlap:
        note += (
            f" It is corrected for splits that redraw the same images (Nadeau & Bengio 2003; overlap {overlap:.2f})."
        )
    return "\n\n".join([note, *tables])


def gains(baseline: str, scores: Sequence[Score], overlap: float = 0.0) -> dict[str, statistics.Interval]:
    """Returns name of a row -> what its students gain over the baseline (points of the last test accuracy).

    Args:
      baseline: Name of the student without a teacher.
      scores: Results of all runs.
      overlap: See `study_tables`.
    """
    groups, found = _grouped(scores), {}
    for (student, teacher), group in groups.items():
        reference = _baseline(groups, student, baseline)
        if student not in ("", reference):
            values = differences(group, groups[reference, ""])
            found[row_name((student, teacher))] = statistics.widened(statistics.t_interval(values), overlap)
    return found


def _grouped(scores: Sequence[Score]) -> Groups:
    groups: Groups = {}
    for score in scores:
        groups.setdefault((score.student, score.teacher), []).append(score)
    return groups


def _rows_table(groups: Groups, baseline: str, overlap: float) -> str:
    rows, published = [], any(score.published is not None for group in groups.values() for score in group)
    for (student, teacher), group in groups.items():
        reference = _baseline(groups, student, baseline)
        plain = student in ("", reference)
        difference = "" if plain else interval(differences(group, groups[reference, ""]), overlap=overlap)
        spreads = [_spread(group, checkpoint) for checkpoint in ("last", "best")]
        printed = (("-" if group[0].published is None else f"{group[0].published:.2f}"),) if published else ()
        name, losses = student or "(teacher)", " + ".join(group[0].losses)
        rows.append((name, teacher or "-", losses, *spreads, *printed, difference, len(group)))
    header = ("last", "best", *(("published",) if published else ()), f"last − {baseline}", "n")
    return markdown(("student", "teacher", "loss", *header), rows)


def _baseline(groups: Groups, student: str, baseline: str) -> str:
    """Returns the baseline of the student's group, where names begin with 'GROUP: '."""
    group, separator, _ = student.partition(": ")
    own = f"{group}{separator}{baseline}"
    return own if separator and (own, "") in groups else baseline


def _contrasts_table(groups: Groups, contrasts: Sequence[tuple[Row, Row]], overlap: float) -> str:
    rows = []
    for first, second in contrasts:
        difference = interval(differences(groups[first], groups[second]), overlap=overlap)
        rows.append((f"{row_name(first)} − {row_name(second)}", difference, len(groups[first])))
    return markdown(("difference", "last", "n"), rows)


def row_name(row: Row) -> str:
    """Returns the name of a row in words: 'teacher MSE', 'KD from MSE' or 'alone'."""
    student, teacher = row
    if not student:
        return f"teacher {teacher}"
    return f"{student} from {teacher}" if teacher else student


def _test(score: Score, checkpoint: str) -> float:
    return 100 * score.result[checkpoint]["test"]["accuracy"]


def _spread(group: Sequence[Score], checkpoint: str) -> str:
    if any(checkpoint not in score.result for score in group):
        return "-"
    return spread([_test(score, checkpoint) for score in group])


def differences(group: Sequence[Score], other: Sequence[Score]) -> list[float]:
    """Returns the differences (points of the last test accuracy) between two rows, one for each independent unit.

    Runs on one split share their test images and are not independent: the units are the means of splits. With one
    split they are seeds, and say nothing about other test images.

    Args:
      group: Runs of a row.
      other: Runs whose accuracy is subtracted, with the same seeds and splits.
    """
    base = {(score.split, score.seed): _test(score, "last") for score in other}
    own = {(score.split, score.seed): _test(score, "last") for score in group}
    units, _ = statistics.nested_units({place: value - base[place] for place, value in own.items()})
    return units


def interval(values: Sequence[float], digits: int = 2, overlap: float = 0.0) -> str:
    """Returns a mean with its 95 % t interval in words, marked as noise where the interval contains zero.

    Equal values have an interval without width, which is not evidence but a test set too small to show a difference.

    Args:
      values: Independent values, at least one; a single value has no interval.
      digits: Digits after the decimal point.
      overlap: Test examples per training example where the values are of splits that redraw the same examples.
    """
    found = statistics.widened(statistics.t_interval(values), overlap)
    shown = found.units > 1 and not statistics.has_no_width(found)
    noise = " (noise)" if shown and found.low <= 0 <= found.high else ""
    return f"{found.mean:+.{digits}f}{bounds(found, digits) or ' (one draw)'}{noise}"
