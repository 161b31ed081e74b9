"""The tables of a study on images with human labels: accuracies, and distances of seen and unseen images."""

from typing import Any

from kdjax.reporting import contrasts as cross
from kdjax.reporting.tables import markdown, spread


def report(study: Any, outcome: Any) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'human'.
      outcome: what `studies.human.run` returned.
    """
    header = ("student", "teacher", "seen, last", "unseen, last", "unseen, best", "n")
    rows = []
    groups: dict[tuple[str, str], list[dict]] = {}
    for job, result in outcome.pairs:
        groups.setdefault((job.student, job.teacher), []).append(result)
    for (student, teacher), results in groups.items():
        cells = [_spread(results, *where) for where in (("last", "train"), ("last", "test"), ("best", "test"))]
        rows.append((student or "(teacher)", teacher or "-", *cells, len(results)))
    floors = ", ".join(f"{name} {outcome.floors[split]:.4f}" for name, split in (("seen", "train"), ("unseen", "test")))
    text = (
        "Squared distance of a network's output to the human label distribution, summed over classes, mean over images "
        f"(seen: the training images; unseen: the test images). {study.raters} people an image leave a noise of "
        f"{floors} in it, which no network can be rid of."
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in outcome.rates.items())
    chosen = f"Teachers' learning rates, by validation accuracy on a seed of its own: {rates}."
    paired = "Differences of one seed, last checkpoint, [ ] a 95 % t interval over seeds:"
    contrasts = markdown(("difference", "seen", "unseen"), [_contrast(outcome, *pair) for pair in study.contrasts])
    parts = [cross.report(study, outcome.pairs).rstrip(), chosen, text, markdown(header, rows), paired, contrasts]
    return "\n\n".join(parts) + "\n"


def _contrast(outcome: Any, first: tuple[str, str], second: tuple[str, str]) -> tuple[str, ...]:
    """Of the distances of two rows, (student, teacher) each."""
    cells = []
    for split in ("train", "test"):
        a, b = (
            {(job.split, job.seed): result["last"][split]["distance"] for job, result in outcome.pairs
             if (job.student, job.teacher) == tuple(row)}
            for row in (first, second)
        )  # fmt: skip
        cells.append(cross.interval([a[place] - b[place] for place in a], 4))
    return (f"{cross.row_name(first)} − {cross.row_name(second)}", *cells)


def _spread(results: list[dict], checkpoint: str, split: str) -> str:
    if any(checkpoint not in result for result in results):
        return "-"
    values = [result[checkpoint][split]["distance"] for result in results]
    return spread(values, 4)
