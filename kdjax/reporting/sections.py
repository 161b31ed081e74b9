"""The sections of a report that are figures: what runs of a store, and networks that were looked at, have to show."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.nn import softmax

from kdjax import analysis
from kdjax.reporting import figures, statistics
from kdjax.reporting.comparison import Line
from kdjax.reporting.contact_sheet import shown
from kdjax.reporting.figures import Example, Figure, Series
from kdjax.reporting.selection import Candidate
from kdjax.store import Store

DISTANCE = "A teacher's distance and its students"
LONGEST_LABEL = 40  # characters that fit beside a figure


def label_of(line: Line) -> str:
    """Returns a short name of a row for legends and axes: number, method and what its teachers were trained with."""
    losses = "; ".join(teacher.rpartition(": ")[2] for teacher in filter(None, line.teacher.split("; ")))
    name = f"#{line.number} {line.method}" + (f" from {losses}" if losses and " generation " not in line.method else "")
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 3] + "..."


def learning(store: Store, lines: Sequence[Line], found: Sequence[Candidate]) -> list[Figure]:
    """Curves of every row, those of one data set and network together, as many to a figure as can be told apart."""
    groups: dict[tuple[str, str], list] = {}
    for line, candidate in zip(lines, found, strict=True):
        logs = [store.run(row.name).metrics() for row in candidate.rows]
        if any(logs):
            groups.setdefault((line.data, line.network), []).append((label_of(line), logs))
    drawn = []
    for (data, network), rows in groups.items():
        for part in _batched(rows):
            name = f"learning-{len(drawn) + 1}"
            caption = f"{network} on {data}; a band is the standard deviation over runs."
            caption += " The steep beginning of long curves, their first eighth, may lie outside the axes."
            drawn.append(figures.curves(name, "How they learned", caption, _panels(part)))
    return drawn


def _batched(rows: Sequence) -> list[Sequence]:
    return [rows[start : start + figures.MOST] for start in range(0, len(rows), figures.MOST)]


def _panels(rows: Sequence[tuple[str, list]]) -> dict[tuple[str, str], list[Series]]:
    split = "validation" if any("validation" in line for _, logs in rows for log in logs for line in log) else "test"
    wanted = {
        "training accuracy [%]": ("train", "accuracy", 100),
        f"{split} accuracy [%]": (split, "accuracy", 100),
        f"{split} cross-entropy [nats]": (split, "loss", 1),
    }
    return {("epoch", title): [_series(label, logs, *place) for label, logs in rows] for title, place in wanted.items()}


def _series(label: str, logs: Sequence[Sequence[Mapping]], split: str, what: str, scale: float) -> Series:
    """What every run's log has of it, by epoch."""
    values: dict[int, list[float]] = {}
    for log in logs:
        for line in log:
            if (line.get(split) or {}).get(what) is not None:  # what was not finite is null
                values.setdefault(line["epoch"], []).append(scale * line[split][what])
    epochs = sorted(values)
    return Series(label, epochs, [values[epoch] for epoch in epochs])


def generations(found: Sequence[Candidate]) -> list[Figure]:
    """Accuracy of each chain by generation; none where the store has no generations."""
    chains: dict[str, dict[str, dict[int, list[float]]]] = {}
    for candidate in found:
        first = candidate.rows[0]
        if first.generation:
            number = first.generation[1]
            chain = first.name.rpartition(f"-gen{number}-")[0]
            scores = [100 * row.score("last") for row in candidate.rows]
            chains.setdefault(first.data, {}).setdefault(chain, {})[number] = scores
    return [
        figures.curves(
            f"generations-{number}",
            "Generations",
            f"Test accuracy of the last checkpoint on {data}; generation 0 is the patriarch, a band the standard "
            "deviation over seeds.",
            {("generation", "test accuracy [%]"): [Series(label, *_by_number(c)) for label, c in of_data.items()]},
        )
        for number, (data, of_data) in enumerate(((data, _shortened(own)) for data, own in chains.items()), 1)
    ]


def _shortened(chains: Mapping[str, dict]) -> dict[str, dict]:
    """Chains by the last part of their path, or by all of it where folders have chains of one name."""
    short = {path: path.rpartition("/")[2] for path in chains}
    shared = {name for name, times in Counter(short.values()).items() if times > 1}
    return {path if short[path] in shared else short[path]: chain for path, chain in chains.items()}


def _by_number(chain: Mapping[int, list[float]]) -> tuple[list[int], list[list[float]]]:
    return sorted(chain), [chain[number] for number in sorted(chain)]


def distances(found: Sequence[Candidate]) -> list[Figure]:
    """Students' accuracy against how far their teacher is from p*, a point a student; a figure a data set."""
    points: dict[str, dict[str, tuple[list, list]]] = {}
    unknown: Counter[str] = Counter()
    for row in (row for candidate in found for row in candidate.rows if row.teachers):
        if None not in row.teacher_distances:
            xs, ys = points.setdefault(row.data, {}).setdefault(f"{row.method} ({row.network})", ([], []))
            xs.append(float(np.mean(row.teacher_distances)))
            ys.append(100 * row.score("last"))
        elif row.score("last", what="distance") is not None:
            unknown[row.data] += 1
    parts = [(data, dict(part)) for data, of_data in points.items() for part in _batched(list(of_data.items()))]
    if not parts:
        why = _not_shown(unknown.total()) or "no student here has a teacher whose data has distributions p*."
        return [Figure("distance", DISTANCE, "", why.strip())]
    return [_distance(f"distance-{n}", data, part, unknown[data]) for n, (data, part) in enumerate(parts, 1)]


def _distance(name: str, data: str, points: Mapping[str, tuple[list, list]], unknown: int) -> Figure:
    caption = (
        f"Each point is a student on {data}, at its last checkpoint; across: ‖q − p*‖² of its teacher (the mean of "
        "several) at the checkpoint that it learnt from, summed over classes, mean over the test set."
    )
    rhos = {method: statistics.spearman(*xy) for method, xy in points.items()}
    said = ", ".join(f"{method} {rho:+.2f}" for method, rho in rhos.items() if np.isfinite(rho))
    caption += f" Spearman's ρ within a method: {said}." if said else ""
    caption += _not_shown(unknown)
    labels = ("teacher's squared distance to p*", "student's test accuracy [%]")
    return figures.scatter(name, DISTANCE, caption, labels, [Series(method, *xy) for method, xy in points.items()])


def _not_shown(students: int) -> str:
    if not students:
        return ""
    return (
        f" Not shown: {students} students whose teacher's distance nobody measured: of imported weights, at a step of "
        "its training, or as read with a temperature, columns or an output of its own."
    )


def networks(
    evidence: Mapping[str, Any], numbers: Mapping[str, Line], teachers: Mapping[str, Sequence[str]]
) -> list[Figure]:
    """What looked-at networks of each test set say.

    Args:
      evidence: name of a test set -> `studies.evidence.Evidence`.
      numbers: run -> its row of the table.
      teachers: run -> runs that it learnt from.
    """
    drawn = []
    for number, (data, seen) in enumerate(evidence.items(), 1):
        if seen.outputs:
            order = sorted(seen.outputs, key=lambda run: numbers[run].number)
            names = {run: label_of(numbers[run]) for run in order}
            drawn += [part(f"{name}-{number}", data, seen, names) for name, part in OF_NETWORKS.items()]
            told = {run: names[run] for run in _student_and_teacher(order, numbers, teachers)}
            drawn.append(_examples(f"examples-{number}", data, seen, told))
    return drawn


def _student_and_teacher(
    runs: Sequence[str], numbers: Mapping[str, Line], teachers: Mapping[str, Sequence[str]]
) -> list[str]:
    """A teacher, the student alone, and the teacher's student, as far as they were looked at; else the first three."""
    students = [run for run in runs if teachers[run]]
    if not students:
        return list(runs[:3])
    student = min(students, key=lambda run: not set(teachers[run]) & set(runs))  # the first whose teacher is here
    taught_by = [run for run in runs if run in teachers[student]]
    alone = [run for run in runs if numbers[run].number == numbers[student].against]
    return list(dict.fromkeys([*taught_by[:1], *alone, student]))


def _reliability(name: str, data: str, seen: Any, names: Mapping[str, str]) -> Figure:
    tables = {
        name: analysis.reliability(analysis.reliability_sums(seen.outputs[run].logits, seen.outputs[run].labels))
        for run, name in names.items()
    }
    caption = f"On the test set of {data}; on the dashed line confidence is accuracy. One run of each row."
    return figures.reliability_diagrams(name, "Reliability", caption, tables)


def _agreement(name: str, data: str, seen: Any, names: Mapping[str, str]) -> Figure:
    votes = [seen.outputs[run].logits.argmax(axis=1) for run in names]
    values = np.array([[np.mean(a == b) for b in votes] for a in votes])
    caption = f"Share of the test set of {data} of which two runs say the same class. One run of each row."
    if len(votes) < 2:
        return Figure(name, "Agreement", "", "one network agrees with itself only.")
    return figures.matrix(name, "Agreement", caption, list(names.values()), values, "agreement")


def _overlap(name: str, data: str, seen: Any, names: Mapping[str, str]) -> Figure:
    runs = [run for run in names if any(run in pair for pair in seen.overlaps)]
    if not runs:
        return Figure(name, "Attention", "", f"fewer than two networks on {data} have class-activation maps.")
    values = np.eye(len(runs))
    for (i, a), (j, b) in itertools.permutations(enumerate(runs), 2):
        values[i, j] = seen.overlaps.get((a, b), seen.overlaps.get((b, a), np.nan))
    caption = (
        "Overlap (IoU) of the regions in which the class-activation maps of two runs, summed over classes and taken to "
        f"[0, 1], are above 0.4; mean over the test set of {data}. One run of each row."
    )
    return figures.matrix(name, "Attention", caption, [names[run] for run in runs], values, "IoU")


def _examples(name: str, data: str, seen: Any, names: Mapping[str, str]) -> Figure:
    """Some images with what a few networks say and where they look."""
    outputs, images = next(iter(seen.outputs.values())), None
    if len(seen.dataset.stored_shape) == 3:
        images = shown(seen.dataset, outputs.rows[seen.examples], 0, 0, "none", train=False)
    classes = [str(c) for c in seen.dataset.class_names or range(seen.dataset.num_classes)]
    examples = []
    for place, i in enumerate(seen.examples):
        said = {label: np.asarray(softmax(seen.outputs[run].logits[i])) for run, label in names.items()}
        truth = {} if outputs.soft is None else {"p*": outputs.soft[i]}
        maps = {label: seen.maps[run][place] for run, label in names.items() if run in seen.maps}
        image = None if images is None else images[place]
        examples.append(Example(image, classes[outputs.labels[i]], {**truth, **said}, maps))
    caption = f"Of the test set of {data}: the first of some classes, then those on which the networks differ most."
    caption += " Of last checkpoints."
    if examples[0].maps:
        caption += " Bright: where a class-activation map, summed over classes and taken to [0, 1], is high; line: 0.4."
    return figures.example_sheet(name, "Examples", caption, examples, classes)


# Name -> (name, data, evidence, run -> label) -> a figure of all networks that were looked at.
OF_NETWORKS = {"reliability": _reliability, "agreement": _agreement, "overlap": _overlap}
