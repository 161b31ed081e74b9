"""From KD to TTM and beyond: students under more and more of the Rényi entropy that TTM adds to KD.

Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024: its identity as a sweep, and the
quantities of its three figures, measured on the training examples at every epoch and on the test split at the end.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import analysis, losses
from kdjax.inspection.predict import predict_run
from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, curves
from kdjax.reporting.tables import markdown, spread
from kdjax.studies.fields import RunConfig, Terms, check_known
from kdjax.studies.runner import FinishedRun, Job, Runner, redrawn_overlap, seeded

LEVELS = ("CE", "CE, smoothed 10 %", "TTM")  # losses that figures show as horizontal lines
Panels = dict[tuple[str, str], list[Series]]  # (x label, y label) -> its lines


class RenyiKey(NamedTuple):
    """Which run of the study a job is.

    Attributes:
      label: Name of the losses in the study; '' for a teacher.
      seed: Seed of the run and of the data split.
    """

    label: str
    seed: int


class RenyiStudent(NamedTuple):
    """One student.

    Attributes:
      label: Name of its losses in the study.
      seed: Seed of the student, its teacher and their data split.
      accuracy: Test accuracy after the last epoch.
      entropy: Mean entropy of its outputs on the test split, in nats.
      to_transformed: Mean KL(p_T || q) on the test split, p_T the teacher's output at the study's temperature.
      train_entropy: Mean entropy of its outputs on training batches, by epoch.
      train_to_transformed: Mean KL(p_T || q) on training batches, by epoch; () where the losses have another
        temperature, or no teacher.
      overlap: Test examples per training example where the seeds' splits redraw the same examples, else 0.
    """

    label: str
    seed: int
    accuracy: float
    entropy: float
    to_transformed: float
    train_entropy: tuple[float, ...]
    train_to_transformed: tuple[float, ...]
    overlap: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenyiStudy:
    """Fields of a study of kind 'renyi'.

    Attributes:
      title: Title of the report.
      temperature: Temperature T of the transformed teacher.
      seeds: Seeds; each has its own data split and teacher.
      teacher: Config of the teachers.
      student: Config of the students, but for their losses.
      losses: Name -> losses of a student; one with cross-entropy alone has no teacher.
      baseline: Name of the losses that others are compared with.
      contrasts: Pairs of names whose difference is reported, the first minus the second.
    """

    title: str
    temperature: float = 4.0
    seeds: tuple[int, ...]
    teacher: RunConfig
    student: RunConfig
    losses: dict[str, dict]
    baseline: str
    contrasts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_known("baseline", (self.baseline,), self.losses)
        check_known("contrasts", [name for pair in self.contrasts for name in pair], self.losses)

    def run(self, runner: Runner) -> list[RenyiStudent]:
        """Trains all teachers, then all students, and measures the students."""
        runs = runner.run_stages(make_stages(self))
        teachers = {run.key.seed: _logits(run, runner) for run in runs if not run.key.label}
        overlap = redrawn_overlap(runs)
        measured = [_measure(self, run, teachers[run.key.seed], runner) for run in runs if run.key.label]
        return [student._replace(overlap=overlap) for student in measured]

    def report(self, outcome: Sequence[RenyiStudent]) -> str:
        """Returns the tables of students, differences and curves in Markdown."""
        parts = [
            f"# {self.title}",
            f"T = {self.temperature:g}; {len(self.seeds)} seeds, each with its own split and teacher. Test accuracy "
            "(%), entropy H(q) and KL(p_T, q) to the transformed teacher (nats), of the last epoch; ± is the standard "
            f"deviation over seeds, [ ] a 95 % t interval of the paired difference from '{self.baseline}'.",
            _students_table(self, outcome),
            "Differences within a seed, the first minus the second:",
            _contrasts_table(self, outcome),
            "Mean entropy H(q) on training batches, by epoch:",
            _curves_table(self, outcome, "train_entropy"),
            "Mean KL(p_T, q) to the transformed teacher on training batches, by epoch:",
            _curves_table(self, outcome, "train_to_transformed"),
        ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: Sequence[RenyiStudent]) -> list[Figure]:
        """Returns the paper's three figures, and accuracy and entropy against the coefficient of the Rényi entropy."""
        over_seeds = f"a band is the standard deviation over {len(self.seeds)} seeds."
        train, test = f"Mean over training batches; {over_seeds}", f"On the test split, last epoch; {over_seeds}"
        both = {"cross_entropy", "kd"}
        temperatures = {name: terms["kd"]["temperature"] for name, terms in self.losses.items() if set(terms) == both}
        swept = {name: terms for name, terms in self.losses.items() if _is_swept(terms, self.temperature)}
        coefficients = {name: _coefficient(terms) for name, terms in swept.items()}
        entropy = _by_epoch(outcome, "train_entropy", "H(q) [nats]", ("KD", "TTM", "WTTM"))
        alone = ("TTM without CE", "WTTM without CE")
        distance = _by_epoch(outcome, "train_to_transformed", "KL(p_T, q) [nats]", alone)
        by_temperature = _against(outcome, "KD's temperature", "KD", temperatures)
        by_coefficient = _against(outcome, "coefficient of the Rényi entropy", "KD less the entropy", coefficients)
        return [
            curves("entropy-by-epoch", "How confident students are", train, entropy),
            curves("distance-by-epoch", "How far students are from the transformed teacher", train, distance),
            curves("entropy-by-temperature", "How confident students are by KD's temperature", test, by_temperature),
            curves("renyi-coefficient", "From KD (0) to TTM (1) and beyond", test, by_coefficient),
        ]


def make_stages(study: RenyiStudy) -> list[list[Job[RenyiKey]]]:
    """Returns two stages: a teacher for each seed, and the students of all losses.

    Args:
      study: The study.
    """
    teachers, students = [], []
    for seed in study.seeds:
        teacher = f"{study.teacher.data.name}/teacher-s{seed}"
        teachers.append(Job(RenyiKey("", seed), teacher, seeded(study.teacher, seed, seed)))
        for label, terms in study.losses.items():
            config, name = seeded(study.student, seed, seed), f"{study.student.data.name}/{_slug(label)}-s{seed}"
            config.losses, config.diagnostics = RunConfig(terms), True
            if set(terms) != {"cross_entropy"}:
                config.teachers = RunConfig({"a": {"run": teacher}})
            students.append(Job(RenyiKey(label, seed), name, config))
    return [teachers, students]


def _slug(label: str) -> str:
    """Returns a label that may be a part of a run's name."""
    return "".join(character if character.isalnum() or character in "._+-" else "_" for character in label)


def _logits(run: FinishedRun[RenyiKey], runner: Runner) -> Array:
    return jnp.asarray(predict_run(runner.store, run.name, data_dir=runner.data_dir).logits)


def _measure(study: RenyiStudy, run: FinishedRun[RenyiKey], teacher_logits: Array, runner: Runner) -> RenyiStudent:
    student_logits = _logits(run, runner)
    rows = [row["train"] for row in runner.store.find(run.name).metrics()]
    to_transformed = [row["a/kl_to_transformed"] for row in rows if "a/kl_to_transformed" in row]
    terms = study.losses[run.key.label].values()
    at_temperature = any(
        term.get("temperature") == study.temperature or term.get("gamma") == 1 / study.temperature for term in terms
    )
    return RenyiStudent(
        label=run.key.label,
        seed=run.key.seed,
        accuracy=run.score("last", "test"),
        entropy=analysis.fidelity_scores(teacher_logits, student_logits)["entropy_second"],
        to_transformed=float(np.mean(losses.ttm(student_logits, teacher_logits, gamma=1 / study.temperature))),
        train_entropy=tuple(row["student_entropy"] for row in rows),
        train_to_transformed=tuple(to_transformed) if at_temperature else (),
    )


def _students_table(study: RenyiStudy, students: Sequence[RenyiStudent]) -> str:
    rows = []
    for label in study.losses:
        group = [student for student in students if student.label == label]
        cells = [spread([100 * s.accuracy for s in group], 2)]
        cells += [spread([getattr(s, field) for s in group], 3) for field in ("entropy", "to_transformed")]
        difference = "" if label == study.baseline else _difference(students, label, study.baseline, _accuracy, 2)
        rows.append((label, *cells, difference))
    return markdown(("losses", "accuracy", "H(q)", "KL(p_T, q)", f"accuracy − {study.baseline}"), rows)


def _contrasts_table(study: RenyiStudy, students: Sequence[RenyiStudent]) -> str:
    rows = []
    for first, second in study.contrasts:
        cells = [_difference(students, first, second, _accuracy, 2)]
        for field in ("entropy", "to_transformed"):
            cells.append(_difference(students, first, second, lambda s, field=field: getattr(s, field), 3))
        rows.append((f"{first} − {second}", *cells))
    return markdown(("losses", "accuracy", "H(q)", "KL(p_T, q)"), rows)


def _curves_table(study: RenyiStudy, students: Sequence[RenyiStudent], field: str) -> str:
    """Returns a row of a few epochs for each of the losses that has the quantity."""
    rows, epochs = [], study.student.epochs
    shown = sorted({1, *(max(1, round(epochs * part)) for part in (0.05, 0.125, 0.25, 0.5, 1))})
    for label in study.losses:
        curves = [getattr(student, field) for student in students if student.label == label]
        if all(curves):
            mean = np.mean(curves, axis=0)
            rows.append((label, *(f"{mean[epoch - 1]:.3f}" for epoch in shown)))
    return markdown(("losses", *map(str, shown)), rows)


def _is_swept(terms: Terms, temperature: float) -> bool:
    return "kd" in terms and terms["kd"]["temperature"] == temperature


def _coefficient(terms: Terms) -> float:
    """Returns the Rényi entropy's weight as a part of lambda T (T - 1), the weight with which KD is TTM."""
    kd = terms["kd"]
    whole = kd["weight"] * kd["temperature"] * (kd["temperature"] - 1)
    return -terms["student_renyi"]["weight"] / whole if "student_renyi" in terms else 0.0


def _by_epoch(students: Sequence[RenyiStudent], field: str, axis: str, labels: Sequence[str]) -> Panels:
    series = []
    for label in labels:
        logs = [getattr(student, field) for student in students if student.label == label]
        if logs and all(logs):
            series.append(Series(label, range(1, len(logs[0]) + 1), list(zip(*logs, strict=True))))
    return {("epoch", axis): series}


def _against(students: Sequence[RenyiStudent], axis: str, name: str, places: Mapping[str, float]) -> Panels:
    """Returns entropy and accuracy against a number that some of the losses have, and LEVELS as horizontal lines.

    Args:
      students: All students.
      axis: Label of the x axis.
      name: Name of the line.
      places: Name of losses -> their number.
    """
    panels: Panels = {}
    for measure, value in (("H(q) [nats]", lambda student: student.entropy), ("test accuracy [%]", _accuracy)):
        found = {label: [value(s) for s in students if s.label == label] for label in (*places, *LEVELS)}
        at = {places[label]: found[label] for label in places}
        series = [Series(name, sorted(at), [at[x] for x in sorted(at)])]
        series += [
            Series(label, sorted(at), [float(np.mean(found[label]))] * len(at)) for label in LEVELS if found[label]
        ]
        panels[axis, measure] = series
    return panels


def _accuracy(student: RenyiStudent) -> float:
    return 100 * student.accuracy


def _difference(
    students: Sequence[RenyiStudent], first: str, second: str, value: Callable[[RenyiStudent], float], digits: int
) -> str:
    own, base = ({s.seed: value(s) for s in students if s.label == label} for label in (first, second))
    return interval([own[seed] - base[seed] for seed in own], digits, students[0].overlap)
