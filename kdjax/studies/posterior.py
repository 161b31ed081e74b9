"""Does a teacher that is nearer to the Bayes posterior p* make better students? Teachers on data whose p* is known.

Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation, ECCV 2024, its toy experiment, with
controls: every loss at its own best rate, early stopping, calibrated and softened cross-entropy, and p* itself.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.data import load_dataset
from kdjax.data.sources import gaussian_oracle
from kdjax.errors import UserError
from kdjax.inspection.exchange import import_weights
from kdjax.inspection.predict import Predictions, predict_run
from kdjax.interop import write_weights
from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.statistics import spearman
from kdjax.reporting.tables import markdown, spread
from kdjax.studies.fields import RunConfig, Terms, check_at_least, check_known, known_distributions
from kdjax.studies.runner import Job, Runner, Trial, choose_settings, seeded

ORACLE, ORACLE_RUN = "p*", "gaussian/oracle"
SELECTION_SEEDS = 100  # the first seed of teachers that choose rates and strengths; none of these is reported
STUDENT_SEEDS = 1000  # the first seed of students
LOSSES: dict[str, Terms] = {
    "cross_entropy": {"cross_entropy": {"weight": 1.0}},
    "softmax_mse": {"softmax_mse": {"weight": 1.0}},
}


class TeacherRow(NamedTuple):
    """A row of the table of teachers.

    Attributes:
      kind: Name of the row.
      loss: Name of its losses, in LOSSES or in the study's `softened`.
      fixed_budget: Whether it is the last checkpoint at the study's fixed rate, not the best one at the chosen rate.
      calibrated: Whether its logits are divided by a temperature that is fitted on validation.
    """

    kind: str
    loss: str
    fixed_budget: bool = False
    calibrated: bool = False


# Rows that every study has; rows of one run differ in its checkpoint or its temperature.
TEACHER_ROWS = (
    TeacherRow("CE, fixed budget", "cross_entropy", fixed_budget=True),
    TeacherRow("MSE, fixed budget", "softmax_mse", fixed_budget=True),
    TeacherRow("CE, stopped", "cross_entropy"),
    TeacherRow("MSE, stopped", "softmax_mse"),
    TeacherRow("CE, stopped, calibrated", "cross_entropy", calibrated=True),
)


class PosteriorTeacher(NamedTuple):
    """One teacher that students learn from, measured on the test split.

    Attributes:
      kind: Row of the table.
      seed: Seed of the teacher; 0 for p*, which is a single teacher.
      run: Name of its run in the store.
      checkpoint: 'last' or 'best'.
      temperature: What its logits are divided by.
      accuracy: Test accuracy.
      distance: Mean squared distance to p*, summed over classes.
      entropy: Mean entropy of its outputs in nats.
    """

    kind: str
    seed: int
    run: str
    checkpoint: str
    temperature: float
    accuracy: float
    distance: float
    entropy: float


class StudentKey(NamedTuple):
    """Which student a job is.

    Attributes:
      method: Name of the student's losses in the study.
      kind: Row of its teacher; '' for none.
      teacher_seed: Seed of its teacher; 0 for none.
      seed: Number of the student among those of its teacher.
    """

    method: str
    kind: str
    teacher_seed: int
    seed: int


class PosteriorStudent(NamedTuple):
    """One student: the fields of its `StudentKey`, and its test accuracy at the best epoch by validation."""

    method: str
    kind: str
    teacher_seed: int
    seed: int
    accuracy: float


class Softened(NamedTuple):
    """A softened cross-entropy that was chosen on validation.

    Attributes:
      losses: The losses.
      entropy: Mean entropy of their teachers on validation in nats.
      target: The same of the MSE teachers, to which it is the nearest.
    """

    losses: Terms
    entropy: float
    target: float


class PosteriorOutcome(NamedTuple):
    """What the study found.

    Attributes:
      bayes: Accuracy of p* on the test split.
      rates: Name of a loss -> learning rate that was chosen for it on validation.
      softened: Name -> softened cross-entropy that was chosen on validation.
      teachers: All teachers that students learnt from.
      students: All students.
    """

    bayes: float
    rates: dict[str, float]
    softened: dict[str, Softened]
    teachers: list[PosteriorTeacher]
    students: list[PosteriorStudent]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates that are tried for each loss."""

    cross_entropy: tuple[float, ...]
    softmax_mse: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosteriorStudy:
    """Fields of a study of kind 'posterior'.

    Attributes:
      title: Title of the report.
      seeds: Number of teachers per row of the table.
      student_seeds: Number of students per teacher and method.
      select_seeds: Number of teachers by which rates and strengths are chosen.
      fixed_rate: Learning rate of the teachers with a fixed budget.
      rates: Learning rates, of which the stopped teachers take the best.
      softened: Name -> losses of several strengths, of which the one nearest to the MSE teacher's entropy is taken.
      teacher: Config of the teachers; its data set must be 'gaussian'.
      student: Config of the students.
      methods: Name -> losses of a student.
      alone: Names of the methods without a teacher.
      contrasts: Pairs of rows of teachers whose difference is reported, the first minus the second.
    """

    title: str
    seeds: int = 5
    student_seeds: int = 3
    select_seeds: int = 2
    fixed_rate: float
    rates: Rates
    softened: dict[str, tuple[dict, ...]]
    teacher: RunConfig
    student: RunConfig
    methods: dict[str, dict]
    alone: tuple[str, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds, student_seeds=self.student_seeds, select_seeds=self.select_seeds)
        check_known("alone", self.alone, self.methods)
        check_known("contrasts", [kind for pair in self.contrasts for kind in pair], self.kinds)
        if self.teacher.data.name != "gaussian":
            raise UserError(f"config.teacher.data.name must be 'gaussian', not '{self.teacher.data.name}'.")
        if not self.rates.cross_entropy or not self.rates.softmax_mse or not all(self.softened.values()):
            raise UserError("config.rates and config.softened must name at least one rate and strength each.")

    @property
    def rows(self) -> tuple[TeacherRow, ...]:
        """Rows of the table of teachers, but for p*."""
        return (*TEACHER_ROWS, *(TeacherRow(f"{name}, stopped", name) for name in self.softened))

    @property
    def kinds(self) -> list[str]:
        """Names of all rows of the table of teachers."""
        return [*(row.kind for row in self.rows), ORACLE]

    @property
    def distilled(self) -> list[str]:
        """Names of the methods that have a teacher."""
        return [method for method in self.methods if method not in self.alone]

    def run(self, runner: Runner) -> PosteriorOutcome:
        """Chooses rates and strengths on validation, then trains and measures all teachers, then all students."""
        rates = choose_settings(runner, _rate_trials(self), range(self.seeds))
        softened = _choose_softened(self, runner, rates)
        teachers = [*_train_teachers(self, runner, rates, softened), _import_oracle(self, runner)]
        runs = runner.run_jobs(list(_student_jobs(self, teachers)))
        students = [PosteriorStudent(*run.key, run.score("best", "test")) for run in runs]
        return PosteriorOutcome(_bayes_accuracy(self, runner.data_dir), rates, softened, teachers, students)

    def report(self, outcome: PosteriorOutcome) -> str:
        """Returns the tables of teachers and of differences between their students in Markdown."""
        correlations = ", ".join(f"{method} {_spearman(outcome, method):+.2f}" for method in self.distilled)
        parts = [
            f"# {self.title}",
            f"Bayes accuracy on the test split: {outcome.bayes:.2%}. Accuracies in %; ± is the standard deviation over "
            f"{self.seeds} teacher seeds, a teacher's students averaged first ({self.student_seeds} each). Distance: "
            "mean squared distance to p*, summed over classes, on the test split. p* is one teacher.",
            _teacher_table(self, outcome),
            "Differences between students of teachers of one seed, [ ] a 95 % t interval over the teacher seeds:",
            _contrast_table(self, outcome),
            f"Over all {len(outcome.teachers)} teachers, Spearman's rank correlation of distance and students' "
            f"accuracy: {correlations}.",
            f"Chosen on validation, with seeds that are not reported: {_choices(outcome)}.",
        ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: PosteriorOutcome) -> list[Figure]:
        """Returns figure 1 of the paper: teachers' distance to p* against their students' accuracy, by method."""
        axes = ("teacher's squared distance to p*", "students' test accuracy [%]")
        caption = f"Each point is a teacher with the mean of its {self.student_seeds} students; p* is at 0."
        levels, drawn = {"Bayes accuracy": 100 * outcome.bayes}, []
        for method in self.distilled:
            series = []
            for kind, group in _by_kind(outcome).items():
                means = _means(outcome, method, kind)
                series.append(Series(kind, [t.distance for t in group], [100 * means[t.seed] for t in group]))
            title = f"Students by {method}"
            drawn.append(scatter(f"distance-{method.lower()}", title, caption, axes, series, levels))
        return drawn


def _selection_seeds(study: PosteriorStudy) -> range:
    return range(SELECTION_SEEDS, SELECTION_SEEDS + study.select_seeds)


def _rate_trials(study: PosteriorStudy) -> list[Job[Trial[str]]]:
    """Returns the jobs that choose the learning rates of cross-entropy and MSE."""
    return [
        _teacher_job(study, Trial(loss, rate, seed), LOSSES[loss])
        for loss, rates in dataclasses.asdict(study.rates).items()
        for rate in rates
        for seed in _selection_seeds(study)
    ]


def _teacher_job(study: PosteriorStudy, key: Trial[str], losses: Terms) -> Job[Trial[str]]:
    """Returns the job of a teacher, whose name is a function of its losses, learning rate and seed."""
    config = seeded(study.teacher, key.seed)
    config.losses, config.optimizer.learning_rate = RunConfig(losses), key.setting
    words = [f"{name}{''.join(f'-{v:g}' for k, v in term.items() if k != 'weight')}" for name, term in losses.items()]
    weights = [f"{term['weight']:g}" for term in losses.values() if term["weight"] != 1.0]
    parts = [f"gaussian/teacher-{'+'.join(words)}", *weights, f"lr{key.setting:g}-s{key.seed}"]
    return Job(key, "-".join(parts), config)


def _choose_softened(study: PosteriorStudy, runner: Runner, rates: Mapping[str, float]) -> dict[str, Softened]:
    """Returns the softened cross-entropies whose mean entropy on validation is nearest to the MSE teacher's."""

    def make_jobs(loss: str, losses: Terms) -> list[Job[Trial[str]]]:
        seeds = _selection_seeds(study)
        return [_teacher_job(study, Trial(loss, rates[loss], seed), losses) for seed in seeds]

    tried = {name: [make_jobs("cross_entropy", terms) for terms in each] for name, each in study.softened.items()}
    runner.run_jobs([job for each in tried.values() for jobs in each for job in jobs])
    # The MSE teachers were trained when their rate was chosen.
    target = _mean_entropy(study, runner, make_jobs("softmax_mse", LOSSES["softmax_mse"]))
    chosen = {}
    for name, each in tried.items():
        entropies = [_mean_entropy(study, runner, jobs) for jobs in each]
        best = min(range(len(each)), key=lambda place: abs(entropies[place] - target))
        chosen[name] = Softened(study.softened[name][best], entropies[best], target)
    return chosen


def _mean_entropy(study: PosteriorStudy, runner: Runner, jobs: Sequence[Job]) -> float:
    """Returns the mean entropy on validation of the best checkpoints of several runs."""
    outputs = [_predict(study, runner, job.name, "best", "validation") for job in jobs]
    return float(np.mean([analysis.entropy(each.logits).mean() for each in outputs]))


def _train_teachers(
    study: PosteriorStudy, runner: Runner, rates: Mapping[str, float], softened: Mapping[str, Softened]
) -> list[PosteriorTeacher]:
    losses = LOSSES | {name: choice.losses for name, choice in softened.items()}
    rows, jobs = [(row, seed) for seed in range(study.seeds) for row in study.rows], []
    for row, seed in rows:
        chosen = rates.get(row.loss, rates["cross_entropy"])  # softened losses take the rate of cross-entropy
        rate = study.fixed_rate if row.fixed_budget else chosen
        jobs.append(_teacher_job(study, Trial(row.kind, rate, seed), losses[row.loss]))
    teachers = []
    for (row, seed), run in zip(rows, runner.run_jobs(jobs), strict=True):
        temperature = _fit_temperature(study, runner, run.name) if row.calibrated else 1.0
        checkpoint = "last" if row.fixed_budget else "best"
        teachers.append(_measure(study, runner, row.kind, seed, run.name, checkpoint, temperature))
    return teachers


def _fit_temperature(study: PosteriorStudy, runner: Runner, run: str) -> float:
    outputs = _predict(study, runner, run, "best", "validation")
    return float(analysis.fit_temperature(jnp.asarray(outputs.logits), jnp.asarray(outputs.labels)))


def _import_oracle(study: PosteriorStudy, runner: Runner) -> PosteriorTeacher:
    """Returns p* as a teacher: it is a linear classifier, which becomes a run of the store."""
    weight, bias = gaussian_oracle(**study.teacher.data.args.to_dict())
    path = runner.store.root / "oracle.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, {"fc.weight": weight.astype(np.float32), "fc.bias": bias.astype(np.float32)})
    name, _ = import_weights(str(path), "mlp", runner.store, name=ORACLE_RUN, args={"hidden": []})
    return _measure(study, runner, ORACLE, 0, name, "last", 1.0)


def _measure(
    study: PosteriorStudy, runner: Runner, kind: str, seed: int, run: str, checkpoint: str, temperature: float
) -> PosteriorTeacher:
    outputs = _predict(study, runner, run, checkpoint, "test")
    logits = outputs.logits / temperature
    soft = known_distributions(outputs.soft)
    distance = float(analysis.posterior_scores(jnp.asarray(logits), jnp.asarray(soft))["squared_distance"])
    accuracy = analysis.accuracy(outputs.logits, outputs.labels)
    entropy = float(analysis.entropy(logits).mean())
    return PosteriorTeacher(kind, seed, run, checkpoint, temperature, accuracy, distance, entropy)


def _predict(study: PosteriorStudy, runner: Runner, run: str, checkpoint: str, split: str) -> Predictions:
    data = study.teacher.data if run == ORACLE_RUN else None  # an imported run has no data of its own
    return predict_run(runner.store, run, split, checkpoint=checkpoint, data_dir=runner.data_dir, data=data)


def _student_jobs(study: PosteriorStudy, teachers: Sequence[PosteriorTeacher]) -> Iterator[Job[StudentKey]]:
    """Yields the students without a teacher, then those of each teacher."""
    for method in study.alone:
        for seed in range(study.student_seeds):
            key = StudentKey(method, "", 0, seed)
            yield Job(key, f"gaussian/student-{method}-s{seed}", _student_config(study, key))
    for teacher in teachers:
        kind = teacher.kind.replace(" ", "_").replace("*", "star").replace(",", "")
        field = {"run": teacher.run, "checkpoint": teacher.checkpoint, "temperature": teacher.temperature}
        for method in study.distilled:
            for seed in range(study.student_seeds):
                key = StudentKey(method, teacher.kind, teacher.seed, seed)
                config = _student_config(study, key)
                config.teachers = RunConfig({"a": field})
                yield Job(key, f"gaussian/student-{method}-{kind}-t{teacher.seed}-s{seed}", config)


def _student_config(study: PosteriorStudy, key: StudentKey) -> RunConfig:
    config = seeded(study.student, STUDENT_SEEDS + key.seed)
    config.losses = RunConfig(study.methods[key.method])
    return config


def _bayes_accuracy(study: PosteriorStudy, data_dir: str) -> float:
    data = load_dataset(study.teacher.data, data_dir)
    rows = data.splits["test"]
    return analysis.accuracy(known_distributions(data.soft)[rows], data.labels[rows])


def _teacher_table(study: PosteriorStudy, outcome: PosteriorOutcome) -> str:
    rows, methods = [], study.distilled
    for kind, group in _by_kind(outcome).items():
        own = [spread([100 * t.accuracy for t in group]), spread([t.distance for t in group], 4)]
        students = [spread([100 * v for v in _means(outcome, method, kind).values()]) for method in methods]
        rows.append((kind, *own, spread([t.entropy for t in group], 3), *students, len(group)))
    for method in dict.fromkeys(s.method for s in outcome.students if not s.kind):
        alone = [100 * s.accuracy for s in outcome.students if s.method == method]
        rows.append((f"(student {method})", "", "", "", *[spread(alone)] * len(methods), len(alone)))
    rows.append(("(Bayes accuracy)", f"{100 * outcome.bayes:.2f}", *[""] * (len(methods) + 3)))
    header = ("teacher", "accuracy", "distance to p*", "entropy, nats", *(f"student, {m}" for m in methods), "n")
    return markdown(header, rows)


def _contrast_table(study: PosteriorStudy, outcome: PosteriorOutcome) -> str:
    rows = []
    for first, second in study.contrasts:
        cells = []
        for method in study.distilled:
            cells.append(interval(_paired(_means(outcome, method, first), _means(outcome, method, second), 100)))
        own, base = ({t.seed: t.distance for t in outcome.teachers if t.kind == kind} for kind in (first, second))
        rows.append((f"{first} − {second}", interval(_paired(own, base), 4), *cells))
    return markdown(("teachers", "distance", *(f"students, {method}" for method in study.distilled)), rows)


def _paired(own: Mapping[int, float], base: Mapping[int, float], scale: float = 1) -> list[float]:
    """Returns scaled differences within a seed; p*, which has one seed, is paired with every seed."""
    return [scale * (own.get(seed, own.get(0, np.nan)) - base[seed]) for seed in base]


def _by_kind(outcome: PosteriorOutcome) -> dict[str, list[PosteriorTeacher]]:
    groups: dict[str, list[PosteriorTeacher]] = {}
    for teacher in outcome.teachers:
        groups.setdefault(teacher.kind, []).append(teacher)
    return groups


def _means(outcome: PosteriorOutcome, method: str, kind: str) -> dict[int, float]:
    """Returns seed of a teacher -> mean accuracy of its students."""
    found: dict[int, list[float]] = {}
    for student in outcome.students:
        if (student.method, student.kind) == (method, kind):
            found.setdefault(student.teacher_seed, []).append(student.accuracy)
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _spearman(outcome: PosteriorOutcome, method: str) -> float:
    accuracies = [_means(outcome, method, t.kind)[t.seed] for t in outcome.teachers]
    return spearman([t.distance for t in outcome.teachers], accuracies)


def _choices(outcome: PosteriorOutcome) -> str:
    """Returns the chosen rates and softened losses in words."""
    words = [f"rate of {loss} {rate:g}" for loss, rate in outcome.rates.items()]
    for name, choice in outcome.softened.items():
        terms = "; ".join(f"{key} {dict(term)}" for key, term in choice.losses.items())
        words.append(f"{name}: {terms} (entropy {choice.entropy:.3f} against {choice.target:.3f})")
    return ", ".join(words)
