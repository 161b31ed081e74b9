"""A crossed study on images with human label distributions: how near do networks come to what people see?"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.data import load_dataset
from kdjax.reporting.contrasts import Row, interval, row_name
from kdjax.reporting.figures import Figure
from kdjax.reporting.tables import markdown, spread
from kdjax.studies.cross import Cell, CrossFields, accuracy_report, make_stages
from kdjax.studies.fields import RunConfig, known_distributions
from kdjax.studies.runner import FinishedRun, Job, Runner, Trial, choose_settings, seeded

SELECTION_SEED = 10_000  # chooses learning rates and is not reported


class HumanOutcome(NamedTuple):
    """What the study found.

    Attributes:
      runs: The finished runs.
      floors: split -> expected squared distance between the measured label distributions and the unknown true ones,
        which is due to the finite number of raters.
      entropies: split -> mean entropy of the human labels in nats.
      rates: teacher -> learning rate that it was trained with.
    """

    runs: list[FinishedRun[Cell]]
    floors: dict[str, float]
    entropies: dict[str, float]
    rates: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HumanStudy(CrossFields):
    """A crossed study whose teachers have their own learning rates; human labels choose nothing.

    Attributes:
      raters: Number of people who labelled each image, at least 2.
      rates: Learning rates, of which each teacher takes that of its best validation accuracy, on a seed that is not
        reported.
    """

    raters: int
    rates: tuple[float, ...]

    def run(self, runner: Runner) -> HumanOutcome:
        """Chooses each teacher's learning rate, then trains all teachers and all students."""
        soft = _human_labels(self, runner.data_dir)
        rates = choose_settings(runner, _trials(self), range(self.seeds))
        teachers = {name: _with_rate(config, rates[name]) for name, config in self.teachers.items()}
        students = {name: _with_train_scores(config) for name, config in self.students.items()}
        runs = runner.run_stages(make_stages(dataclasses.replace(self, teachers=teachers, students=students)))
        noise = {split: analysis.sampling_noise_estimate(jnp.asarray(p), self.raters) for split, p in soft.items()}
        floors = {split: float(np.mean(values)) for split, values in noise.items()}
        entropies = {split: float(analysis.distribution_entropy(p).mean()) for split, p in soft.items()}
        return HumanOutcome(runs, floors, entropies, rates)

    def report(self, outcome: HumanOutcome) -> str:
        """Returns the tables of accuracies and of distances to the human labels in Markdown."""
        rates = ", ".join(f"{name} {rate:g}" for name, rate in outcome.rates.items())
        named = (("seen", "train"), ("unseen", "test"))
        floors = ", ".join(f"{name} {outcome.floors[split]:.4f}" for name, split in named)
        contrasts = [_contrast_cells(outcome, *pair) for pair in self.contrasts]
        parts = [
            accuracy_report(self, outcome.runs).rstrip(),
            f"Teachers' learning rates, by validation accuracy on a seed that is not reported: {rates}.",
            "Squared distance of a network's output to the human label distribution, summed over classes, mean over "
            f"images (seen: the training images; unseen: the test images). {self.raters} people per image leave a "
            f"noise of {floors} in it, which no network can remove.",
            _distance_table(outcome),
            "Differences within a seed, last checkpoint, [ ] a 95 % t interval over seeds:",
            markdown(("difference", "seen", "unseen"), contrasts),
        ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: HumanOutcome) -> list[Figure]:
        """Returns no figures."""
        return []


def _human_labels(study: HumanStudy, data_dir: str) -> dict[str, np.ndarray]:
    """Returns split -> human label distributions [examples, classes] of the first split seed."""
    teacher = make_stages(study)[0][0]  # all runs share the data, up to the split seed
    data = load_dataset(teacher.config.data, data_dir)
    soft = known_distributions(data.soft).astype(np.float64)
    return {split: soft[data.splits[split]] for split in ("train", "test")}


def _trials(study: HumanStudy) -> list[Job[Trial[str]]]:
    trials = []
    for name, config in study.teachers.items():
        for rate in study.rates:
            own = seeded(_with_rate(config, rate), SELECTION_SEED)
            trials.append(Job(Trial(name, rate, SELECTION_SEED), f"choosing/{config.name}-lr{rate:g}", own))
    return trials


def _with_rate(config: RunConfig, rate: float) -> RunConfig:
    config = RunConfig(config.to_dict())
    config.optimizer.learning_rate = rate
    return _with_train_scores(config)


def _with_train_scores(config: RunConfig) -> RunConfig:
    """Returns a config whose run also has the distance on the training images, which the study reports."""
    config = RunConfig(config.to_dict())
    config.score_train = True
    return config


def _distance_table(outcome: HumanOutcome) -> str:
    groups: dict[Row, list[FinishedRun[Cell]]] = {}
    for run in outcome.runs:
        groups.setdefault((run.key.student, run.key.teacher), []).append(run)
    rows = []
    for (student, teacher), runs in groups.items():
        cells = [_spread(runs, *place) for place in (("last", "train"), ("last", "test"), ("best", "test"))]
        rows.append((student or "(teacher)", teacher or "-", *cells, len(runs)))
    return markdown(("student", "teacher", "seen, last", "unseen, last", "unseen, best", "n"), rows)


def _spread(runs: list[FinishedRun[Cell]], checkpoint: str, split: str) -> str:
    if any(checkpoint not in run.result for run in runs):
        return "-"
    return spread([run.score(checkpoint, split, "distance") for run in runs], 4)


def _contrast_cells(outcome: HumanOutcome, first: Row, second: Row) -> tuple[str, str, str]:
    """Returns a row of the table of differences of the distances."""
    cells = []
    for split in ("train", "test"):
        own, base = (_distances(outcome, row, split) for row in (first, second))
        cells.append(interval([own[place] - base[place] for place in own], 4))
    seen, unseen = cells
    return f"{row_name(first)} − {row_name(second)}", seen, unseen


def _distances(outcome: HumanOutcome, row: Row, split: str) -> dict[tuple[int, int], float]:
    """Returns (split seed, seed) -> distance of the last checkpoint."""
    runs = [run for run in outcome.runs if (run.key.student, run.key.teacher) == row]
    return {(run.key.split, run.key.seed): run.score("last", split, "distance") for run in runs}
