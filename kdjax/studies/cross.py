"""A study that crosses teachers with students over seeds and data splits."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.config import printed, unlike_recipe
from kdjax.errors import UserError, nearest
from kdjax.reporting.contrasts import Row, Score, gains, row_name, study_report, study_tables
from kdjax.reporting.figures import Figure, forest
from kdjax.run_names import default_run_name
from kdjax.store.files import plain, read_json
from kdjax.studies.fields import RunConfig, check_at_least
from kdjax.studies.results import design_of
from kdjax.studies.runner import FinishedRun, Job, Runner, redrawn_overlap, seeded


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
      results: File of the project to which `kdjax.publish` copies the results; '' for none.
    """

    title: str
    seeds: int
    splits: tuple[int, ...] = (0,)
    teachers: dict[str, RunConfig]
    students: dict[str, RunConfig]
    baseline: str
    contrasts: tuple[tuple[Row, Row], ...] = ()
    results: str = ""

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


class CrossResults(NamedTuple):
    """The results of a crossed study, which outlive the store of its runs.

    Attributes:
      rows: The score of every run.
      overlap: Test examples per training example where splits redraw the same examples; 0 where they do not.
    """

    rows: tuple[Score, ...] = ()
    overlap: float = 0.0


class CrossStudy(CrossFields):
    """A crossed study, reported by its accuracies."""

    def run(self, runner: Runner) -> CrossResults:
        """Trains all teachers, then all students, and returns their scores, which are also written to the store."""
        results = results_of(self, runner.run_stages(make_stages(self)))
        runner.store.write_text("results.json", self.dumps(results))
        return results

    @property
    def hash(self) -> str:
        """Hash of everything that decides the study's numbers."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return design_of({name: value for name, value in fields.items() if name not in ("title", "results")})

    def report(self, outcome: CrossResults) -> str:
        """Returns the tables of accuracies and of paired differences in Markdown."""
        return study_report(self.title, self.baseline, self.contrasts, outcome.rows, outcome.overlap)

    def tables(self, outcome: CrossResults) -> str:
        """Returns the report without its title, as a README has it."""
        return study_tables(self.baseline, self.contrasts, outcome.rows, outcome.overlap)

    def figures(self, outcome: CrossResults) -> list[Figure]:
        """Returns what each student gains over the baseline, with intervals; nothing where a row has one draw."""
        found = gains(self.baseline, outcome.rows, outcome.overlap)
        if not found or any(interval.units < 2 for interval in found.values()):
            return []
        caption = (
            f"Test accuracy of the last epoch minus that of '{self.baseline}' with the same seed and split: means and "
            "95 % intervals. Filled points lie outside the noise."
        )
        title = f"What students gain over '{self.baseline}'"
        return [forest("gains", title, caption, f"points above '{self.baseline}'", found)]

    def stored(self, path: pathlib.Path, published: pathlib.Path) -> CrossResults:
        """Reads the results from the store or, where it has none, from the project's file.

        Args:
          path: File in the store.
          published: File in the project.

        Raises:
          UserError: A file is damaged or has the results of another design.
        """
        found = path if path.is_file() else published
        record = read_json(found)
        return CrossResults() if record is None else _read_results(record, found, self.hash)

    def dumps(self, results: CrossResults) -> str:
        """Returns the text of a file of results: JSON with one row a line."""
        head = json.dumps({"design": self.hash, "overlap": results.overlap})
        rows = [json.dumps(plain({**row._asdict(), "result": _accuracies(row.result)})) for row in results.rows]
        return head[:-1] + ',\n"runs": [\n' + ",\n".join(rows) + "\n]}\n"


def _accuracies(result: Mapping) -> dict[str, Any]:
    """Returns what a file of results keeps of a run's result: its test accuracies."""
    kept = {name: result[name]["test"]["accuracy"] for name in ("last", "best") if name in result}
    return {name: {"test": {"accuracy": accuracy}} for name, accuracy in kept.items()}


def _read_results(record: Any, path: pathlib.Path, design: str) -> CrossResults:
    try:
        if record["design"] != design:
            raise UserError(
                f"{path} has the results of another design of this study; restore the study's config, or move the "
                "file away to begin anew."
            )
        rows = tuple(Score(**{**row, "losses": tuple(row["losses"])}) for row in record["runs"])
        return CrossResults(rows, float(record["overlap"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); restore it.") from error


def results_of(study: CrossFields, runs: list[FinishedRun[Cell]]) -> CrossResults:
    """Returns the scores of a study's finished runs.

    Args:
      study: The study.
      runs: Its finished runs.
    """
    rows = tuple(
        Score(*run.key, tuple(run.job.config.losses), run.result, published_accuracy(study, run.job)) for run in runs
    )
    return CrossResults(rows, redrawn_overlap(runs))


def accuracy_report(study: CrossFields, runs: list[FinishedRun[Cell]]) -> str:
    """Returns the tables of accuracies and of paired differences in Markdown.

    Args:
      study: The study.
      runs: Its finished runs.
    """
    results = results_of(study, runs)
    return study_report(study.title, study.baseline, study.contrasts, results.rows, results.overlap)


def published_accuracy(study: CrossFields, job: Job[Cell]) -> float | None:
    """Returns the accuracy (%) that a paper prints for a run; None where it prints none for its teacher and its recipe.

    Args:
      study: The study.
      job: One of its jobs.
    """
    student, teacher, *_ = job.key
    teacher_losses = tuple(study.teachers[teacher].losses) if student and teacher else ()
    config = job.config.to_dict()
    return None if unlike_recipe(config) else printed(config["published"], [teacher_losses])


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
                    config.teachers[name] = RunConfig({**field.to_dict(), "run": runs[teacher], "made_by": ""})
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
