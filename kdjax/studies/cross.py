"""A study that crosses teachers with students over seeds and data splits, in one process."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from kdjax.config import default_run_name, printed
from kdjax.errors import UserError, nearest
from kdjax.store import Store
from kdjax.training.loop import train

OPTIONAL = ("kind", "raters", "rates")
NEEDED = ("title", "seeds", "splits", "baseline", "contrasts", "teachers", "students")


class Job(NamedTuple):
    """One run of a study.

    Attributes:
      student: the student's name in the study, '' for a teacher.
      teacher: the name of the teacher, or of the student's teacher, in the study; '' for a student alone.
      seed: of initial weights and order.
      split: seed of the data split.
      config: of the run.
      taught_by: names of the losses of the student's teacher, none of a run without.
    """

    student: str
    teacher: str
    seed: int
    split: int
    config: ConfigDict
    taught_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the run in the store."""
        return default_run_name(self.config)

    @property
    def published(self) -> float | None:
        """The accuracy (%) that a paper prints for the run, None for none."""
        return printed(self.config.published, [self.taught_by])

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses that the run is trained with."""
        return tuple(self.config.losses)


def make_jobs(study: ConfigDict) -> list[Job]:
    """Lists a study's runs, every teacher before its students.

    Args:
      study: every seed of `range(seeds)` on every split of `splits`, for all `teachers` and `students` (name ->
        config); a student whose config names a teacher is trained from each of `teachers` at its seed and split.
        Names 'GROUP: NAME' part a study into groups, whose students learn from the teachers of their own group.

    Raises:
      UserError: a field that a study does not have, or one that it lacks.
    """
    _check(study)
    teachers, students = [], []
    for split, seed in itertools.product(study.splits, range(study.seeds)):
        at = {label: _at(config, seed, split) for label, config in study.teachers.items()}
        teachers += [Job("", label, seed, split, config) for label, config in at.items()]
        for label, config in study.students.items():
            students += _student_jobs(label, _at(config, seed, split), at)
    return teachers + students


def _check(study: ConfigDict) -> None:
    for field in study:
        if field not in OPTIONAL + NEEDED:
            raise UserError(f"a study has no field '{field}'.{nearest(field, OPTIONAL + NEEDED)}")
    for field in NEEDED:
        if field not in study:
            raise UserError(f"the study lacks the field '{field}'.")
    if study.seeds < 1 or not study.splits:
        raise UserError(
            f"config.seeds must be at least 1 and config.splits not empty, not {study.seeds} and {study.splits}."
        )
    for group in sorted({group_of(label) for label in study.students}):
        if group + study.baseline not in study.students:
            hint = nearest(study.baseline, study.students)
            raise UserError(f"config.baseline '{group + study.baseline}' is no student.{hint}")


def _at(config: ConfigDict, seed: int, split: int) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.seed, config.data.split_seed = seed, split
    return config


def _student_jobs(label: str, config: ConfigDict, teachers: dict[str, ConfigDict]) -> list[Job]:
    seed, split = config.seed, config.data.split_seed
    if not config.teachers:
        return [Job(label, "", seed, split, config)]
    jobs = []
    for teacher, teacher_config in teachers.items():
        if group_of(teacher) != group_of(label):
            continue
        own = ConfigDict(config.to_dict())
        for name in own.teachers:
            own.teachers[name] = ConfigDict(
                {"run": default_run_name(teacher_config), "weight": own.teachers[name].weight}
            )
        jobs.append(Job(label, teacher, seed, split, own, tuple(teacher_config.losses)))
    return jobs


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> list:
    """Trains all runs of a study and returns (job, result) of each.

    Args:
      study: as `make_jobs` takes it.
      store: for its runs.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.
    """
    jobs = make_jobs(study)
    return list(zip(jobs, run_jobs(jobs, store, data_dir, counter(len(jobs))), strict=True))


def group_of(label: str) -> str:
    """Returns the group that a name in a study begins with, 'GROUP: ', or ''."""
    group, separator, _ = label.partition(": ")
    return group + separator if separator else ""


def run_jobs(jobs: list[Job], store: Store, data_dir: str, done: Callable[[str], None]) -> list[dict]:
    """Trains the jobs one after another; finished runs are not trained again.

    Args:
      jobs: in an order in which teachers come before their students.
      store: for all of them.
      data_dir: where data sets that are not embedded lie.
      done: called after each job with its run's name.

    Returns:
      Their results, in the jobs' order.
    """
    results = []
    for job in jobs:
        results.append(train(job.config, store, data_dir=data_dir, show=False))
        done(job.name)
    return results
