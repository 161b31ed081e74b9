"""The figures of a report: what the results of the runs show, and what the evaluated networks show."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jax.nn import softmax

from kdjax import analysis
from kdjax.inspection.evidence import Evidence
from kdjax.reporting import figures, statistics
from kdjax.reporting.contact_sheet import view_images
from kdjax.reporting.examples import Example, example_sheet
from kdjax.reporting.figures import Figure, Series
from kdjax.reporting.selection import RunGroup
from kdjax.reporting.table_row import TableRow
from kdjax.store import Store

T = TypeVar("T")
Log = Sequence[Mapping]  # metrics of a run, a mapping for each epoch
Points = tuple[list[float], list[float]]  # x and y of each point
Chain = dict[int, list[float]]  # number of a generation -> accuracy of each run

DISTANCE = "Teacher's distance to p* and students' accuracy"
LONGEST_LABEL = 40  # number of characters that fit beside a figure


def label_of(row: TableRow) -> str:
    """Returns a short name of a row for legends and axes: number, method and the losses of its teachers."""
    losses = "; ".join(teacher.rpartition(": ")[2] for teacher in filter(None, row.teacher.split("; ")))
    label = f"#{row.number} {row.method}" + (f" from {losses}" if losses and " generation " not in row.method else "")
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 3] + "..."


def learning(store: Store, rows: Sequence[TableRow], groups: Sequence[RunGroup]) -> list[Figure]:
    """Draws the learning curves of every row; the rows of one data set and network share figures.

    Args:
      store: Store that holds the runs.
      rows: Rows of the table.
      groups: The group of each row.
    """
    of_network: dict[tuple[str, str], list[tuple[str, list[Log]]]] = {}
    for row, group in zip(rows, groups, strict=True):
        logs: list[Log] = [store.run(run.name).metrics() for run in group.runs]
        if any(logs):
            of_network.setdefault((row.data, row.network), []).append((label_of(row), logs))
    drawn: list[Figure] = []
    for (data, network), labelled in of_network.items():
        for part in _batched(labelled):
            caption = (
                f"{network} on {data}: mean over runs, with a band of one standard deviation. The first eighth of a "
                "long curve may lie outside the axes."
            )
            drawn.append(figures.curves(f"learning-{len(drawn) + 1}", "Learning curves", caption, _panels(part)))
    return drawn


def _batched(items: Sequence[T]) -> list[Sequence[T]]:
    """Splits items into as many as one figure can show."""
    return [items[start : start + figures.MOST] for start in range(0, len(items), figures.MOST)]


def _panels(labelled: Sequence[tuple[str, list[Log]]]) -> dict[tuple[str, str], list[Series]]:
    lines = [line for _, logs in labelled for log in logs for line in log]
    split = "validation" if any("validation" in line for line in lines) else "test"
    panels = {
        "training accuracy [%]": ("train", "accuracy", 100),
        f"{split} accuracy [%]": (split, "accuracy", 100),
        f"{split} cross-entropy [nats]": (split, "loss", 1),
    }
    return {
        ("epoch", title): [_series(label, logs, *place) for label, logs in labelled] for title, place in panels.items()
    }


def _series(label: str, logs: Sequence[Log], split: str, measure: str, scale: float) -> Series:
    """Collects a measure from the logs of several runs, by epoch."""
    values: dict[int, list[float]] = {}
    for line in (line for log in logs for line in log):
        if (line.get(split) or {}).get(measure) is not None:  # a value that was not finite is null
            values.setdefault(line["epoch"], []).append(scale * line[split][measure])
    epochs = sorted(values)
    return Series(label, epochs, [values[epoch] for epoch in epochs])


def generations(groups: Sequence[RunGroup]) -> list[Figure]:
    """Draws the accuracy of each chain by generation; returns no figure if there are no generations."""
    chains: dict[str, dict[str, Chain]] = {}
    for group in groups:
        first = group.runs[0]
        if first.generation:
            number = first.generation.number
            chain = first.name.rpartition(f"-gen{number}-")[0]
            scores = [100 * score for run in group.runs if (score := run.score("last")) is not None]
            chains.setdefault(first.data, {}).setdefault(chain, {})[number] = scores
    return [_generations(f"generations-{n}", data, _shortened(own)) for n, (data, own) in enumerate(chains.items(), 1)]


def _generations(name: str, data: str, chains: Mapping[str, Chain]) -> Figure:
    caption = (
        f"Test accuracy of the last checkpoint on {data}: mean over seeds, with a band of one standard deviation. "
        "Generation 0 is the first teacher, the patriarch."
    )
    series = [Series(label, sorted(chain), [chain[n] for n in sorted(chain)]) for label, chain in chains.items()]
    return figures.curves(name, "Generations", caption, {("generation", "test accuracy [%]"): series})


def _shortened(chains: Mapping[str, Chain]) -> dict[str, Chain]:
    """Names chains by the last part of their path, or by the whole path if several folders have a chain of a name."""
    short = {path: path.rpartition("/")[2] for path in chains}
    shared = {name for name, times in Counter(short.values()).items() if times > 1}
    return {path if short[path] in shared else short[path]: chain for path, chain in chains.items()}


def distances(groups: Sequence[RunGroup]) -> list[Figure]:
    """Draws students' accuracy against their teachers' distance to p*, a figure for each data set."""
    points: dict[str, dict[str, Points]] = {}
    unknown: Counter[str] = Counter()
    for run in (run for group in groups for run in group.runs if run.teachers):
        known, accuracy = [distance for distance in run.teacher_distances if distance is not None], run.score("last")
        if accuracy is not None and len(known) == len(run.teacher_distances):
            xs, ys = points.setdefault(run.data, {}).setdefault(f"{run.method} ({run.network})", ([], []))
            xs.append(float(np.mean(known)))
            ys.append(100 * accuracy)
        elif run.score("last", measure="distance") is not None:
            unknown[run.data] += 1
    parts = [(data, dict(part)) for data, methods in points.items() for part in _batched(list(methods.items()))]
    if not parts:
        why = _left_out(unknown.total()) or "no student has a teacher whose data set has distributions p*."
        return [Figure("distance", DISTANCE, "", why.strip())]
    return [_distance(f"distance-{n}", data, part, unknown[data]) for n, (data, part) in enumerate(parts, 1)]


def _distance(name: str, data: str, points: Mapping[str, Points], unknown: int) -> Figure:
    caption = (
        f"Each point is a student on {data}, at its last checkpoint. The x axis is ‖q − p*‖² of its teacher (the mean "
        "of several teachers) at the checkpoint that the student learned from: summed over classes, averaged over the "
        "test set."
    )
    rhos = {method: statistics.spearman(*xy) for method, xy in points.items()}
    listed = ", ".join(f"{method} {rho:+.2f}" for method, rho in rhos.items() if np.isfinite(rho))
    caption += f" Spearman's ρ within a method: {listed}." if listed else ""
    caption += _left_out(unknown)
    labels = ("teacher's squared distance to p*", "student's test accuracy [%]")
    return figures.scatter(name, DISTANCE, caption, labels, [Series(method, *xy) for method, xy in points.items()])


def _left_out(students: int) -> str:
    if not students:
        return ""
    return (
        f" Not shown: {students} students of teachers whose distance was not measured: imported weights, a checkpoint "
        "that is neither the last nor the best, or outputs that are read with a temperature, a selection of columns or "
        "clipping."
    )


def networks(
    evidence: Mapping[str, Evidence], rows: Mapping[str, TableRow], teachers: Mapping[str, Sequence[str]]
) -> list[Figure]:
    """Draws the figures of the evaluated networks of each test set.

    Args:
      evidence: Label of a test set -> what its networks computed.
      rows: Run -> its row of the table.
      teachers: Run -> runs that it learned from.
    """
    drawn = []
    for number, (data, own) in enumerate(evidence.items(), 1):
        if own.outputs:
            order = sorted(own.outputs, key=lambda run: rows[run].number)
            labels = {run: label_of(rows[run]) for run in order}
            drawn += [section(f"{name}-{number}", data, own, labels) for name, section in OF_NETWORKS.items()]
            compared = {run: labels[run] for run in _student_and_teacher(order, rows, teachers)}
            drawn.append(_examples(f"examples-{number}", data, own, compared))
    return drawn


def _student_and_teacher(
    runs: Sequence[str], rows: Mapping[str, TableRow], teachers: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns a teacher, the student alone and the teacher's student, those that were evaluated; else three runs."""
    students = [run for run in runs if teachers[run]]
    if not students:
        return list(runs[:3])
    student = min(students, key=lambda run: not set(teachers[run]) & set(runs))  # the first with its teacher
    teacher = [run for run in runs if run in teachers[student]][:1]
    alone = [run for run in runs if rows[run].number == rows[student].against]
    return list(dict.fromkeys([*teacher, *alone, student]))


def _reliability(name: str, data: str, evidence: Evidence, labels: Mapping[str, str]) -> Figure:
    outputs = {label: evidence.outputs[run] for run, label in labels.items()}
    tables = {
        label: analysis.reliability(analysis.reliability_sums(own.logits, own.labels)) for label, own in outputs.items()
    }
    caption = (
        f"Accuracy against confidence on the test set of {data}, for one run of each row. On the dashed line, accuracy "
        "equals confidence."
    )
    return figures.reliability_diagrams(name, "Reliability", caption, tables)


def _agreement(name: str, data: str, evidence: Evidence, labels: Mapping[str, str]) -> Figure:
    predictions = [evidence.outputs[run].logits.argmax(axis=1) for run in labels]
    values = np.array([[np.mean(a == b) for b in predictions] for a in predictions])
    caption = f"Share of the test set of {data} for which two runs predict the same class, for one run of each row."
    if len(predictions) < 2:
        return Figure(name, "Agreement of predictions", "", "only one network was evaluated.")
    return figures.matrix(name, "Agreement of predictions", caption, list(labels.values()), values, "agreement")


def _overlap(name: str, data: str, evidence: Evidence, labels: Mapping[str, str]) -> Figure:
    title, overlaps = "Overlap of class-activation maps", evidence.overlaps
    runs = [run for run in labels if any(run in pair for pair in overlaps)]
    if not runs:
        return Figure(name, title, "", f"fewer than two networks on {data} have class-activation maps.")
    values = np.eye(len(runs))
    for (i, a), (j, b) in itertools.permutations(enumerate(runs), 2):
        values[i, j] = overlaps.get((a, b), overlaps.get((b, a), np.nan))
    caption = (
        "Intersection over union of the regions in which the class-activation maps of two runs (summed over classes, "
        f"rescaled to [0, 1]) are above 0.4: mean over the test set of {data}, for one run of each row."
    )
    return figures.matrix(name, title, caption, [labels[run] for run in runs], values, "IoU")


def _examples(name: str, data: str, evidence: Evidence, labels: Mapping[str, str]) -> Figure:
    """Draws some examples with the predicted distributions and the class-activation maps of a few networks."""
    outputs, dataset = next(iter(evidence.outputs.values())), evidence.dataset
    if dataset is None:
        return Figure(name, "Examples", "", "no network was evaluated.")
    images = None
    if len(dataset.stored_shape) == 3:
        images = view_images(dataset, outputs.rows[evidence.examples], 0, 0, "none", train=False)
    classes = [str(c) for c in dataset.class_names or range(dataset.num_classes)]
    examples = []
    for place, i in enumerate(evidence.examples):
        predicted = {label: np.asarray(softmax(evidence.outputs[run].logits[i])) for run, label in labels.items()}
        truth = {} if outputs.soft is None else {"p*": outputs.soft[i]}
        maps = {label: evidence.maps[run][place] for run, label in labels.items() if run in evidence.maps}
        image = None if images is None else images[place]
        examples.append(Example(image, classes[outputs.labels[i]], {**truth, **predicted}, maps))
    caption = (
        f"Test examples of {data}: the first of some classes, then those on which the networks' probabilities differ "
        "most; last checkpoints."
    )
    if examples[0].maps:
        caption += (
            " A map is bright where the class-activation map (summed over classes, rescaled to [0, 1]) is high; the "
            "line is at 0.4."
        )
    return example_sheet(name, "Examples", caption, examples, classes)


# Name -> function of (name of the figure, data set, evidence, run -> label) that draws all evaluated networks.
OF_NETWORKS: dict[str, Callable[[str, str, Evidence, Mapping[str, str]], Figure]] = {
    "reliability": _reliability,
    "agreement": _agreement,
    "overlap": _overlap,
}
