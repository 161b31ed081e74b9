"""Students whose targets leave the Bayes posterior p*: mixtures of p* with labels, and with the uniform distribution.

The experiment with noisy targets of Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation,
ECCV 2024: students learn epsilon * one-hot + (1 - epsilon) * p*. As a control, epsilon / classes + (1 - epsilon) * p*
moves the targets as far from p* without any noise, so that it shows what the distance alone does.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax import analysis
from kdjax.data import Dataset, load_dataset
from kdjax.errors import UserError
from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.statistics import spearman
from kdjax.reporting.tables import markdown, spread
from kdjax.studies.fields import RunConfig, check_at_least, known_distributions
from kdjax.studies.runner import FinishedRun, Job, Runner, Trial, choose_settings, seeded

SELECTION_SEEDS = 10_000  # the first seed that chooses a learning rate; none of these is reported
RESAMPLES = 2000


class Mix(NamedTuple):
    """Targets of a student.

    Attributes:
      other: What p* is mixed with, 'labels' or 'uniform'.
      epsilon: Its weight in [0, 1].
    """

    other: str
    epsilon: float


class NoiseStudent(NamedTuple):
    """One student.

    Attributes:
      other: What p* was mixed with, 'labels' or 'uniform'.
      epsilon: Its weight in [0, 1].
      rate: Learning rate, the best on validation for such targets.
      seed: Seed of the student; no two students share one.
      target_distance: Squared distance of its targets to p* on the training split, summed over classes, mean over
        examples.
      distance: The same of its outputs on the test split.
      accuracy: Test accuracy at the epoch of the best validation accuracy.
    """

    other: str
    epsilon: float
    rate: float
    seed: int
    target_distance: float
    distance: float
    accuracy: float


class NoiseOutcome(NamedTuple):
    """What the study found.

    Attributes:
      bayes: Accuracy of p* on the test split.
      students: All students.
    """

    bayes: float
    students: list[NoiseStudent]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseStudy:
    """Fields of a study of kind 'noise'.

    Attributes:
      title: Title of the report.
      seeds: Number of students per mixture.
      mixes: 'labels' or 'uniform' -> weights epsilon of it beside p*.
      rates: Learning rates, of which each mixture takes the best.
      student: Config of the students; its data set must know p*.
    """

    title: str
    seeds: int = 5
    mixes: dict[str, tuple[float, ...]]
    rates: tuple[float, ...]
    student: RunConfig

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds)
        if not self.rates or not any(self.mixes.values()):
            raise UserError("config.rates and config.mixes must not be empty.")

    def run(self, runner: Runner) -> NoiseOutcome:
        """Chooses a learning rate for each mixture of targets, then trains its students."""
        clean = load_dataset(self.student.data, runner.data_dir)
        reported = range(len(_mixes(self)) * self.seeds)
        rates = choose_settings(runner, _trials(self), reported)
        students = [_measure(run, clean, runner.data_dir) for run in runner.run_jobs(_student_jobs(self, rates))]
        rows = clean.splits["test"]
        return NoiseOutcome(analysis.accuracy(_posterior(clean, "test"), clean.labels[rows]), students)

    def report(self, outcome: NoiseOutcome) -> str:
        """Returns the tables of students and of rank correlations in Markdown."""
        parts = [
            f"# {self.title}",
            f"Bayes accuracy on the test split: {outcome.bayes:.2%}. Accuracies in %, ± is the standard deviation over "
            f"{self.seeds} students; distances are squared, summed over classes, means over examples. "
            "The learning rate of each row is its best on validation, by a seed that is not reported.",
            _students_table(outcome.students),
            "Spearman's rank correlation of the targets' distance to p* with the student's test accuracy, [ ] a 95 % "
            f"bootstrap interval over students ({RESAMPLES} resamples) of one data set:",
            _correlations_table(outcome.students),
        ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: NoiseOutcome) -> list[Figure]:
        """Returns the students' accuracy against the distance of their targets, and against that of their outputs."""
        drawn = []
        for name, of, field in (("targets", "targets'", "target_distance"), ("own", "student's", "distance")):
            series = []
            for other, group in _by_other(outcome.students).items():
                distances = [getattr(student, field) for student in group]
                series.append(Series(f"p* mixed with {other}", distances, [100 * s.accuracy for s in group]))
            axes = (f"{of} squared distance to p*", "student's test accuracy [%]")
            title, caption = f"Accuracy by the {of} distance to p*", "Each point is a student."
            levels = {"p* itself": 100 * outcome.bayes}
            drawn.append(scatter(f"accuracy-by-{name}", title, caption, axes, series, levels))
        return drawn


def _mixes(study: NoiseStudy) -> list[Mix]:
    return [Mix(other, epsilon) for other, epsilons in study.mixes.items() for epsilon in epsilons]


def _trials(study: NoiseStudy) -> list[Job[Trial[Mix]]]:
    trials = []
    for seed, mix in enumerate(_mixes(study), SELECTION_SEEDS):
        trials += [_job(study, Trial(mix, rate, seed)) for rate in study.rates]
    return trials


def _student_jobs(study: NoiseStudy, rates: dict[Mix, float]) -> list[Job[Trial[Mix]]]:
    mixes = [mix for mix in _mixes(study) for _ in range(study.seeds)]
    return [_job(study, Trial(mix, rates[mix], seed)) for seed, mix in enumerate(mixes)]


def _job(study: NoiseStudy, key: Trial[Mix]) -> Job[Trial[Mix]]:
    """Returns the job of a student with the targets, learning rate and seed of the key."""
    config, mix = seeded(study.student, key.seed), key.row
    config.optimizer.learning_rate, config.data.targets = key.setting, "soft"
    config.data.protocols = {"mixed_targets": mix._asdict()}
    return Job(key, f"gaussian/student-{mix.other}-{mix.epsilon:g}-lr{key.setting:g}-s{key.seed}", config)


def _measure(run: FinishedRun[Trial[Mix]], clean: Dataset, data_dir: str) -> NoiseStudent:
    mixed = load_dataset(run.job.config.data, data_dir)
    target_distance = float(np.mean(np.sum((_posterior(mixed, "train") - _posterior(clean, "train")) ** 2, axis=1)))
    distance, accuracy = run.score("best", "test", "distance"), run.score("best", "test")
    return NoiseStudent(*run.key.row, run.key.setting, run.key.seed, target_distance, distance, accuracy)


def _posterior(data: Dataset, split: str) -> np.ndarray:
    return known_distributions(data.soft)[data.splits[split]]


def _students_table(students: Sequence[NoiseStudent]) -> str:
    rows = []
    for other, epsilon in dict.fromkeys((student.other, student.epsilon) for student in students):
        group = [student for student in students if (student.other, student.epsilon) == (other, epsilon)]
        cells = (
            f"{group[0].rate:g}",
            spread([100 * student.accuracy for student in group], 2),
            spread([student.distance for student in group], 4),
            len(group),
        )
        rows.append((other, f"{epsilon:g}", f"{group[0].target_distance:.4f}", *cells))
    header = ("p* mixed with", "epsilon", "targets to p*", "rate", "student accuracy", "student to p*", "n")
    return markdown(header, rows)


def _correlations_table(students: Sequence[NoiseStudent]) -> str:
    rows, groups = [], _by_other(students)
    if len(groups) > 1:
        groups["both"] = list(students)
    for name, group in groups.items():
        accuracies = [student.accuracy for student in group]
        targets, outputs = [s.target_distance for s in group], [s.distance for s in group]
        cells = (spearman_interval(distances, accuracies) for distances in (targets, outputs))
        rows.append((name, *cells, len(group)))
    return markdown(("p* mixed with", "targets' distance", "student's own distance", "n"), rows)


def _by_other(students: Sequence[NoiseStudent]) -> dict[str, list[NoiseStudent]]:
    groups: dict[str, list[NoiseStudent]] = {}
    for student in students:
        groups.setdefault(student.other, []).append(student)
    return groups


def spearman_interval(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Returns Spearman's rank correlation with its 95 % percentile bootstrap interval over pairs, in words.

    Args:
      xs: Values.
      ys: As many values; pairs of them are resampled.

    Returns:
      The correlation and its interval; '-' for fewer than four pairs.
    """
    if len(xs) < 4:
        return "-"
    x, y = np.asarray(xs), np.asarray(ys)
    draw = np.random.default_rng(0)
    resamples = [draw.integers(0, len(x), len(x)) for _ in range(RESAMPLES)]
    correlations = [spearman(x[chosen].tolist(), y[chosen].tolist()) for chosen in resamples]
    low, high = np.nanpercentile(correlations, [2.5, 97.5])  # constant values have no correlation
    return f"{spearman(xs, ys):+.2f} [{low:+.2f}, {high:+.2f}]"
