"""Which teacher teaches? Teachers at equal numbers of training examples, and their students, on independent seeds.

A pilot on seeds that are never reported chooses the learning rate of every kind of teacher, and that of students from
students without a teacher. Then each outermost seed trains its teachers and all of their students before the next one
begins, and its rows are written to the file of results.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import UserError
from kdjax.inspection.predict import predict_run
from kdjax.reporting.figures import Figure
from kdjax.studies import which_teacher_report
from kdjax.studies.fields import RunConfig, check_known
from kdjax.studies.results import ResultRow, Results, ResultsFile, design_of, dumps, essential, later, pack
from kdjax.studies.runner import FinishedRun, Job, Runner
from kdjax.studies.teacher_measures import DATA, Shown, measure_teacher

STUDENT_SEEDS = 1000  # a student's seed is this times its number, counted from 1, plus the outermost seed
ALONE = "alone"  # the control whose rate is that of all students


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A kind of run that becomes one teacher or several.

    Attributes:
      config: Its config. Where `init_from` or a teacher's run names another kind of run, the run of the same seed is
        meant.
      rates: Learning rates that the pilot tries, in order; as many for every kind of run. A single one is not tried.
      passes: Training examples that it takes, as a multiple of what the others take.
    """

    config: RunConfig
    rates: tuple[float, ...]
    passes: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A way to read a run as a teacher.

    Attributes:
      run: Name of the kind of run.
      checkpoint: 'last' or 'best', which is selected by the config's `select_by`.
      fitted: Whether students divide its logits by the temperature that is fitted on validation labels.
      taught: Whether it has students; otherwise it is measured only.
    """

    run: str
    checkpoint: str = "last"
    fitted: bool = False
    taught: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition on one run of the pilot, without which the whole study takes another setting, once.

    Attributes:
      teacher: Name of the teacher that is measured.
      measure: Name of the measure.
      least: The value that it must reach.
      train: Number of training examples (of the protocol random_split) in the other setting.
      epochs: Number of epochs of every run in the other setting.
    """

    teacher: str
    measure: str
    least: float
    train: int
    epochs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhichTeacherStudy:
    """Fields of a study of kind 'which_teacher'.

    Attributes:
      title: Title of the report.
      design: What the study was designed to decide, which its report begins with.
      results: File of results in the project; '' for none. Its runs are not trained again.
      data: Key of `kdjax.studies.teacher_measures.DATA`.
      seeds: The outermost seeds.
      pilot: Seeds of the pilot.
      runs: Kinds of runs that become teachers.
      teachers: Teachers; each reads one of the runs.
      student: Config of the students.
      students: Number of students per teacher and method.
      methods: Name -> losses of students with a teacher.
      scored: Names of the methods whose mean is a teacher's score.
      controls: Name -> config of a student without a teacher; one is 'alone'.
      student_rates: Learning rates that the pilot tries for students.
      gates: At most one gate.
      challenger: Name of the teacher that the claim is about.
      baselines: Names of the teachers that it is compared with, the plain one first.
      margin: Differences of students within this many points are no difference that matters.
      pilot_epochs: Number of epochs of the pilot's runs; 0 for their own.
      pilot_milestones: Milestones of their schedule where they have other epochs.
    """

    title: str
    design: str
    results: str = ""
    data: str
    seeds: tuple[int, ...]
    pilot: tuple[int, ...]
    runs: dict[str, Trained]
    teachers: dict[str, Reading]
    student: RunConfig
    students: int = 1
    methods: dict[str, dict]
    scored: tuple[str, ...]
    controls: dict[str, RunConfig]
    student_rates: tuple[float, ...]
    gates: tuple[Gate, ...] = ()
    challenger: str
    baselines: tuple[str, ...]
    margin: float = 1.0
    pilot_epochs: int = later(0)
    pilot_milestones: tuple[int, ...] = later(())

    def __post_init__(self) -> None:
        check_known("data", [self.data], DATA)
        check_known("teachers", [reading.run for reading in self.teachers.values()], self.runs)
        check_known("scored", self.scored, self.methods)
        check_known("challenger and config.baselines", [self.challenger, *self.baselines], self.teachers)
        check_known("gates", [gate.teacher for gate in self.gates], self.teachers)
        check_known("controls", [ALONE], self.controls)
        shared = sorted({*self.seeds} & {*self.pilot})
        if shared or not self.seeds or not self.pilot:
            raise UserError(f"config.seeds and config.pilot must be seeds that differ, not with {shared} in both.")
        cells = {len(trained.rates) for trained in self.runs.values()}
        if len(cells) != 1 or 0 in cells or not self.student_rates:
            raise UserError("config.runs: the pilot must try as many rates for every kind of run, at least one.")

    def run(self, runner: Runner) -> Results:
        """Runs the pilot, then every seed that is not in the file of results."""
        published = pathlib.Path(self.results) if self.results else None
        file = ResultsFile(runner.store.root / "results.json", published, self.hash)
        if not file.results.choices:
            file.choose(*_run_pilot(self, runner))
        setting = _chosen(self, file.results)
        for seed in self.seeds:
            if seed not in file.results.finished:
                file.finish(seed, _run_seed(setting, runner, seed))
        return file.results

    @property
    def hash(self) -> str:
        """Hash of everything that decides the study's numbers."""
        texts = ("title", "design", "results")
        return design_of({name: value for name, value in essential(self).items() if name not in texts})

    def stored(self, path: pathlib.Path, published: pathlib.Path) -> Results:
        """Reads the results from the store or, where that has fewer, from the project's file."""
        return ResultsFile(path, published, self.hash).results

    def dumps(self, results: Results) -> str:
        """Returns the text of a file of results."""
        return dumps(results, self.hash)

    def report(self, outcome: Results) -> str:
        """Returns the tables of the study in Markdown."""
        return which_teacher_report.report(self, outcome)

    def tables(self, outcome: Results) -> str:
        """Returns the report without its title and its design, as a README has it."""
        return which_teacher_report.tables(self, outcome)

    def figures(self, outcome: Results) -> list[Figure]:
        """Returns differences with intervals, distance against student accuracy, and reliability."""
        return which_teacher_report.figures(self, outcome)


class Place(NamedTuple):
    """Key of a job: where its run stands in the study; see `ResultRow`."""

    seed: int
    teacher: str
    method: str = ""
    student: int = 0


# --- The pilot


def _run_pilot(study: WhichTeacherStudy, runner: Runner) -> tuple[dict[str, Any], list[ResultRow]]:
    """Returns what the pilot chooses and its rows; a gate that is not passed has it run again in the other setting."""
    rates, rows = _pilot_rates(study, runner)
    choices: dict[str, Any] = {"rates": rates}
    for gate in study.gates:
        found = [_gate_value(study, runner, gate, rates, seed) for seed in study.pilot]
        choices["gate"] = {"value": float(np.mean(found)), "passed": bool(np.mean(found) >= gate.least)}
        if not choices["gate"]["passed"]:
            choices["rates"], more = _pilot_rates(_other_setting(study, gate), runner)
            rows += more
    return choices, rows


def _pilot_rates(study: WhichTeacherStudy, runner: Runner) -> tuple[dict[str, float], list[ResultRow]]:
    """Tries all rates, and beside the best of a kind one more if it lies at an edge.

    Kinds that others need come first. A kind with a single rate is tried only if something needs its run.
    """
    rates: dict[str, float] = {}
    rows: list[ResultRow] = []
    for kinds in [*_stages(study), [ALONE]]:
        tried = {name: list(study.student_rates if name == ALONE else study.runs[name].rates) for name in kinds}
        several = {name: cells for name, cells in tried.items() if len(cells) > 1}
        runs = _try(
            study, runner, {name: tried[name] for name in kinds if name in several or _is_needed(study, name)}, rates
        )
        runs += _try(study, runner, {name: _beyond(cells, _best(runs, name)) for name, cells in several.items()}, rates)
        rates |= {name: _best(runs, name) if name in several else cells[0] for name, cells in tried.items()}
        rows += [_pilot_row(run) for run in runs]
    return rates, rows


def _try(
    study: WhichTeacherStudy, runner: Runner, tried: dict[str, list[float]], rates: dict[str, float]
) -> list[FinishedRun[Place]]:
    """Trains the pilot's runs of some rates; `rates` has those that were chosen for the kinds that they need."""
    cells = [(name, rate, seed) for name, own in tried.items() for rate in own for seed in study.pilot]
    return runner.run_all([_pilot_job(study, *cell, rates) for cell in cells]) if cells else []


def _is_needed(study: WhichTeacherStudy, name: str) -> bool:
    """Whether a gate or another kind of run needs the pilot's run of a kind."""
    return any(study.teachers[gate.teacher].run == name for gate in study.gates) or any(
        name in _needs(study, kind) for kind in study.runs
    )


def _needs(study: WhichTeacherStudy, kind: str) -> list[str]:
    """Returns the kinds of runs that a kind starts or learns from."""
    config = study.runs[kind].config
    named = [config.init_from, *(teacher.run for teacher in config.teachers.values())]
    return [name for name in named if name in study.runs]


def _stages(study: WhichTeacherStudy) -> list[list[str]]:
    """Returns the kinds of runs in stages, each after those that it needs."""
    stages, done = [], set()
    while len(done) < len(study.runs):
        stage = [kind for kind in study.runs if kind not in done and done.issuperset(_needs(study, kind))]
        if not stage:
            raise UserError(f"config.runs: {', '.join(sorted(set(study.runs) - done))} need one another.")
        stages.append(stage)
        done |= set(stage)
    return stages


def _pilot_job(study: WhichTeacherStudy, name: str, rate: float, seed: int, rates: dict[str, float]) -> Job[Place]:
    if name == ALONE:
        config = _student_config(study, study.controls[ALONE], seed, 0, rate)
    else:
        needed = {kind: _pilot_name(study.runs[kind].config, kind, rates[kind], seed) for kind in _needs(study, name)}
        config = _teacher_config(study, name, seed, rate, needed)
    if study.pilot_epochs:
        config.epochs, config.schedule.milestones = study.pilot_epochs, study.pilot_milestones
    return Job(Place(seed, name), _pilot_name(config, name, rate, seed), config)


def _pilot_name(config: RunConfig, name: str, rate: float, seed: int) -> str:
    """Returns the name of a run of the pilot, which differs from that of the same run in a gate's other setting."""
    drawn = config.data.protocols.get("random_split", {})
    return f"pilot/{_plain(name)}-lr{rate:g}-s{seed}" + (f"-n{drawn['train']}" if drawn else "")


def _best(runs: Sequence[FinishedRun[Place]], name: str) -> float:
    """Returns the rate of the highest validation accuracy after the last epoch, averaged over the pilot's seeds."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if run.key.teacher == name:
            found.setdefault(run.job.config.optimizer.learning_rate, []).append(run.score("last", "validation"))
    return max(sorted(found), key=lambda rate: np.mean(found[rate]))


def _beyond(rates: Sequence[float], best: float) -> list[float]:
    """Returns the one rate beyond an edge at which the best lies, as far as the next one inside it."""
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return []
    inner = rates[1] if best == rates[0] else rates[-2]
    return [float(f"{best * best / inner:.6g}")]


def _pilot_row(run: FinishedRun[Place]) -> ResultRow:
    scores = {"validation": run.score("last", "validation")}
    return _row("pilot", run, scores)


def _gate_value(study: WhichTeacherStudy, runner: Runner, gate: Gate, rates: dict[str, float], seed: int) -> float:
    reading = study.teachers[gate.teacher]
    job = _pilot_job(study, reading.run, rates[reading.run], seed, rates)
    shown = Shown(study.student.data.view, _student_seed(seed, 0))
    measured = measure_teacher(runner, job.name, reading.checkpoint, reading.fitted, study.data, shown)
    return measured.scores[gate.measure]


def _other_setting(study: WhichTeacherStudy, gate: Gate) -> WhichTeacherStudy:
    """Returns the study with the gate's number of training examples and of epochs."""

    def changed(config: RunConfig) -> RunConfig:
        config = RunConfig(config.to_dict())
        config.data.protocols.random_split.train, config.epochs = gate.train, gate.epochs
        return config

    runs = {name: dataclasses.replace(each, config=changed(each.config)) for name, each in study.runs.items()}
    controls = {name: changed(config) for name, config in study.controls.items()}
    return dataclasses.replace(study, runs=runs, controls=controls, student=changed(study.student))


def _chosen(study: WhichTeacherStudy, results: Results) -> "Setting":
    passed = results.choices.get("gate", {}).get("passed", True)
    return Setting(study if passed else _other_setting(study, study.gates[0]), results.choices["rates"])


# --- A seed


class Setting(NamedTuple):
    """A study in the setting that its gate left, and the rates that its pilot chose."""

    study: WhichTeacherStudy
    rates: dict[str, float]


def _run_seed(setting: Setting, runner: Runner, seed: int) -> list[ResultRow]:
    """Trains the teachers of a seed, then their students, and returns the rows of all."""
    study = setting.study
    trained: dict[str, FinishedRun[Place]] = {}
    for kinds in _stages(study):
        possible = [name for name in kinds if not any(_failed(trained, needed) for needed in _needs(study, name))]
        found = runner.run_all([_teacher_job(setting, name, seed) for name in possible])
        trained |= {run.key.teacher: run for run in found}
    readings = [(name, reading.run) for name, reading in study.teachers.items()]
    rows = [_teacher_row(study, runner, name, trained[kind]) for name, kind in readings if kind in trained]
    failed = {name for name, kind in readings if _failed(trained, kind)}
    for number in range(study.students):
        students = runner.run_all(_student_jobs(setting, seed, number, failed))
        rows += [_student_row(study, runner, run) for run in students]
    return rows


def _failed(trained: dict[str, FinishedRun[Place]], kind: str) -> bool:
    """Whether a kind of run diverged, or could not be trained since one that it needs diverged."""
    return kind not in trained or bool(trained[kind].result.get("diverged"))


def _teacher_job(setting: Setting, name: str, seed: int) -> Job[Place]:
    needed = {kind: _teacher_name(kind, seed) for kind in _needs(setting.study, name)}
    config = _teacher_config(setting.study, name, seed, setting.rates[name], needed)
    return Job(Place(seed, name), _teacher_name(name, seed), config)


def _teacher_row(study: WhichTeacherStudy, runner: Runner, name: str, run: FinishedRun[Place]) -> ResultRow:
    reading, row = study.teachers[name], _row("teacher", run, {})
    row = dataclasses.replace(row, teacher=name)
    if row.diverged:
        return dataclasses.replace(row, scores={"accuracy": run.score("last", "test")})
    shown = Shown(study.student.data.view, _student_seed(row.seed, 0))
    measured = measure_teacher(runner, run.name, reading.checkpoint, reading.fitted, study.data, shown)
    scores = {"epoch": run.result[reading.checkpoint]["epoch"], "seconds": run.result["seconds"], **measured.scores}
    correct = pack(measured.correct) if DATA[study.data].tests == "same" else ""
    return dataclasses.replace(row, scores=scores, bins=measured.bins, correct=correct)


def _student_jobs(setting: Setting, seed: int, number: int, failed: set[str]) -> list[Job[Place]]:
    """Returns the jobs of all students of one number; teachers that diverged have none."""
    study, rate, jobs = setting.study, setting.rates[ALONE], []
    for control, config in study.controls.items():
        config = _student_config(study, config, seed, number, rate)
        jobs.append(Job(Place(seed, "", control, number), _student_name(control, seed, number), config))
    for name, reading in study.teachers.items():
        for method, losses in study.methods.items() if reading.taught and name not in failed else ():
            config = _student_config(study, study.student, seed, number, rate)
            teacher = {"run": _teacher_name(reading.run, seed), "checkpoint": reading.checkpoint}
            config.teachers = {"a": teacher | ({"temperature": "fitted"} if reading.fitted else {})}
            config.losses = losses
            run = _student_name(f"{method}-{name}", seed, number)
            jobs.append(Job(Place(seed, name, method, number), run, config))
    return jobs


def _student_row(study: WhichTeacherStudy, runner: Runner, run: FinishedRun[Place]) -> ResultRow:
    last = run.result["last"]["test"]
    scores = {"accuracy": last["accuracy"], "nll": last.get("loss", float("nan"))}
    row = _row("student", run, scores | {"seconds": run.result.get("seconds", float("nan"))})
    if row.diverged or DATA[study.data].tests != "same":
        return row
    outputs = predict_run(runner.store, run.name, "test", data_dir=runner.data_dir)
    correct = np.argmax(outputs.logits, axis=1) == outputs.labels
    return dataclasses.replace(row, scores={**row.scores, "examples": len(correct)}, correct=pack(correct))


def _row(part: str, run: FinishedRun[Place], scores: dict[str, float]) -> ResultRow:
    return ResultRow(
        part=part,
        seed=run.key.seed,
        run=run.name,
        rate=float(run.job.config.optimizer.learning_rate),
        teacher=run.key.teacher,
        method=run.key.method,
        student=run.key.student,
        diverged=bool(run.result.get("diverged", False)),
        scores=scores,
    )


# --- Configs and names


def _teacher_config(study: WhichTeacherStudy, name: str, seed: int, rate: float, needed: dict[str, str]) -> RunConfig:
    """Returns the config of a kind of run; `needed` has the names of the runs that it starts or learns from."""
    config = DATA[study.data].seeded(study.runs[name].config, seed)
    config.seed, config.optimizer.learning_rate = seed, rate
    config.init_from = needed.get(config.init_from, config.init_from)
    for teacher in config.teachers.values():
        teacher.run = needed.get(teacher.run, teacher.run)
    return config


def _student_config(study: WhichTeacherStudy, config: RunConfig, seed: int, number: int, rate: float) -> RunConfig:
    config = DATA[study.data].seeded(config, seed)
    config.seed, config.optimizer.learning_rate = _student_seed(seed, number), rate
    return config


def _student_seed(seed: int, number: int) -> int:
    return STUDENT_SEEDS * (1 + number) + seed


def _teacher_name(name: str, seed: int) -> str:
    return f"teachers/{_plain(name)}-s{seed}"


def _student_name(name: str, seed: int, number: int) -> str:
    return f"students/{_plain(name)}-s{seed}" + (f"-{number}" if number else "")


def _plain(name: str) -> str:
    words = "".join(letter if letter.isalnum() or letter in ".-" else " " for letter in name).split()
    return "_".join(words).lower()
