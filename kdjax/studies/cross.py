"""A study that crosses teachers with students over seeds and data splits."""

import dataclasses
import itertools
from typing import NamedTuple

from kdjax.config import default_run_name, printed
from kdjax.errors import UserError, nearest
from kdjax.reporting.contrasts import Row, Score, row_name, study_report
from kdjax.reporting.figures import Figure
from kdjax.studies.fields import RunConfig, check_at_least
from kdjax.studies.runner import FinishedRun, Job, Runner, seeded


class Cell(NamedTuple):
    """Which run of a crossed study a job is.

    Attributes:
      student: Name of the student in the study; '' for a teacher.
      teacher: Name of the teacher, or of the student's teacher, in the study; '' for a student without one.
      seed: Seed of initial weights and order.
      split: Seed of the data split.
    """

    student: str
    teacher: str
    seed: int
    split: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFields:
    """Fields of a crossed study; every seed of `range(seeds)` is run on every split.

    Names 'GROUP: NAME' divide a study into groups: students learn from the teachers of their own group only.

    Attributes:
      title: Title of the report.
      seeds: Number of seeds.
      splits: Seeds of the data splits.
      teachers: Name -> config of each teacher.
      students: Name -> config of each student; one whose config has a teacher learns from each of `teachers` in turn.
      baseline: Name of the student without a teacher that others are compared with, without its group.
      contrasts: Pairs of rows (student, teacher) whose difference is reported, the first minus the second.
    """

    title: str
    seeds: int
    splits: tuple[int, ...] = (0,)
    teachers: dict[str, RunConfig]
    students: dict[str, RunConfig]
    baseline: str
    contrasts: tuple[tuple[Row, Row], ...] = ()

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds)
        if not self.splits:
            raise UserError("config.splits must not be empty.")
        for group in sorted({_group_of(label) for label in self.students}):
            if group + self.baseline not in self.students:
                hint = nearest(self.baseline, self.students)
                raise UserError(f"config.baseline: there is no student '{group + self.baseline}'.{hint}")
        rows = [row_name(row) for row in _rows(self)]
        for row in itertools.chain.from_iterable(self.contrasts):
            if row_name(row) not in rows:
                raise UserError(f"config.contrasts: there is no row '{row_name(row)}'.{nearest(row_name(row), rows)}")


class CrossStudy(CrossFields):
    """A crossed study, reported by its accuracies."""

    def run(self, runner: Runner) -> list[FinishedRun[Cell]]:
        """Trains all teachers, then all students, and returns the finished runs."""
        return runner.run_stages(make_stages(self))

    def report(self, outcome: list[FinishedRun[Cell]]) -> str:
        """Returns the tables of accuracies and of paired differences in Markdown."""
        return accuracy_report(self, outcome)

    def figures(self, outcome: list[FinishedRun[Cell]]) -> list[Figure]:
        """Returns no figures."""
        return []


def accuracy_report(study: CrossFields, runs: list[FinishedRun[Cell]]) -> str:
    """Returns the tables of accuracies and of paired differences in Markdown.

    Args:
      study: The study.
      runs: Its finished runs.
    """
    scores = [
        Score(*run.key, tuple(run.job.config.losses), run.result, published_accuracy(study, run.job)) for run in runs
    ]
    return study_report(study.title, study.baseline, study.contrasts, scores)


def published_accuracy(study: CrossFields, job: Job[Cell]) -> float | None:
    """Returns the accuracy (%) that a paper prints for a run; None where it prints none for the run's teacher.

    Args:
      study: The study.
      job: One of its jobs.
    """
    student, teacher, *_ = job.key
    teacher_losses = tuple(study.teachers[teacher].losses) if student and teacher else ()
    return printed(job.config.published, [teacher_losses])


def make_stages(study: CrossFields) -> list[list[Job[Cell]]]:
    """Returns two stages: the teachers, and the students of every teacher.

    Args:
      study: The study.
    """
    teachers, students = [], []
    for split, seed in itertools.product(study.splits, range(study.seeds)):
        own = {label: seeded(config, seed, split) for label, config in study.teachers.items()}
        runs = {label: default_run_name(config) for label, config in own.items()}
        teachers += [Job(Cell("", label, seed, split), runs[label], config) for label, config in own.items()]
        for student, teacher in _rows(study):
            if student:
                config = seeded(study.students[student], seed, split)
                for name, field in config.teachers.items():
                    config.teachers[name] = RunConfig({"run": runs[teacher], "weight": field.get("weight", 1.0)})
                students.append(Job(Cell(student, teacher, seed, split), default_run_name(config), config))
    return [teachers, students]


def _rows(study: CrossFields) -> list[Row]:
    """Returns all (student, teacher), first those of the teachers."""
    rows = [("", teacher) for teacher in study.teachers]
    for student, config in study.students.items():
        own = [teacher for teacher in study.teachers if _group_of(teacher) == _group_of(student)]
        rows += [(student, teacher) for teacher in own] if config.teachers else [(student, "")]
    return rows


def _group_of(label: str) -> str:
    """Returns the group that a name begins with, 'GROUP: ', or ''."""
    group, separator, _ = label.partition(": ")
    return group + separator if separator else ""
