"""The report of a store: a table of its runs, figures, and notes on how to read them, as HTML and Markdown."""

import errno
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdjax.inspection.evidence import Evidence
from kdjax.reporting import formats, sections
from kdjax.reporting.comparison import compare
from kdjax.reporting.figures import Figure
from kdjax.reporting.figures import write as write_figures
from kdjax.reporting.run_record import RunRecord, TestSplit
from kdjax.reporting.selection import RunGroup, validation_score
from kdjax.reporting.table_row import TableRow
from kdjax.store import Store
from kdjax.store.files import disk_error, write_atomic

# Notes under the table: columns -> what they are.
COLUMNS = {
    "last, best": "Test accuracy in % of the last checkpoint, and of the checkpoint with the best validation accuracy: "
    "mean ± standard deviation over runs.",
    "published": "Test accuracy in % that a paper reports for this method and these networks, with its source. 'last "
    "epoch': measured after the last epoch, as 'last' is. 'best epoch': the highest test accuracy of all epochs, which "
    "was selected on the test set and is biased upwards; do not compare it with 'last' or 'best'. 'not the paper's "
    "recipe': the runs were trained otherwise, and should not be expected to reach it.",
    "difference": "Difference to the baseline's row (#), of the last checkpoint unless --checkpoint=best was given, "
    "with a 95 % interval in brackets. Runs are paired by split, seed and, if both rows have teachers, teacher. Where "
    "pairs of runs were evaluated, the interval includes the error due to the finite test set: that of the mean gain "
    "over all such pairs, by bootstrap over test examples, added in quadrature.",
    "over": "Unit of replication: the outermost of split, teacher, seed with more than one value; inner levels are "
    "averaged first. 'seeds beside teachers': the students of several teachers are compared with the same runs without "
    "a teacher, and vary more over seeds than over teachers. 'one teacher': the interval says nothing about other "
    "teachers. 'unpaired': the two rows have no split and seed in common.",
    "test set ±": "Standard error due to the finite test set, of the last checkpoint; more seeds do not reduce it. "
    "'bootstrap' is over the test examples of an evaluated run, 'binomial' follows from the accuracy and the number of "
    "test examples. For several splits it is the error over all their test sets, which share examples.",
    "verdict": "'gain' or 'loss' if the interval leaves out zero, else 'within noise'. 'cannot tell': there is a "
    "single value, all values are equal, or there are fewer than six with --interval=bootstrap.",
    "tried": "Number of the method's settings in the store. * marks a budget (settings or examples) that differs from "
    "the baseline's.",
    "examples": "Training examples that one run processed, including those of the run whose weights it started from. "
    "teachers' examples: those that its teachers and their teachers processed.",
}


class Page(NamedTuple):
    """The contents of a report.

    Attributes:
      title: Title of the page.
      lead: Sentences at the top.
      header: Titles of the table's columns.
      table: Cells of each row of the table.
      columns: Columns -> note on what they are.
      figures: Figures that are shown.
      missing: Reasons why something is not shown, one sentence each.
    """

    title: str
    lead: list[str]
    header: list[str]
    table: list[list[str]]
    columns: dict[str, str]
    figures: list[Figure]
    missing: list[str]


def choose_networks(groups: Sequence[RunGroup], most: int) -> dict[str, list[str]]:
    """Chooses the runs that are evaluated for the figures.

    They are one run of each method: the run that taught the first student of a test set, or else a run of the method's
    best setting by validation.

    Args:
      groups: Groups of `selection.select_groups`.
      most: Largest number of runs for each test set. Only runs with the same test set can be compared.

    Returns:
      Label of a test set -> names of runs, students and others in turn; {} if `most` is 0.
    """
    test_sets: dict[str, dict[TestSplit | None, list[RunRecord]]] = {}
    for run in _one_of_each_method(groups):
        test_sets.setdefault(run.data, {}).setdefault(run.test, []).append(run)
    names = {}
    for data, of_data in test_sets.items():
        for number, runs in enumerate(of_data.values(), 1):
            label = f"{data} (test set {number})" if len(of_data) > 1 else data
            names[label] = _in_turn(runs)[:most]
    return names if most else {}


def _in_turn(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the names of students and other runs in turn, the teachers of the first student first."""
    students, others = ([run for run in runs if bool(run.teachers) is has_teacher] for has_teacher in (True, False))
    first_teachers = students[0].teacher_runs if students else ()
    others.sort(key=lambda run: run.name not in first_teachers)
    turns = itertools.chain.from_iterable(itertools.zip_longest(students, others))
    return [run.name for run in turns if run is not None]


def _one_of_each_method(groups: Sequence[RunGroup]) -> list[RunRecord]:
    methods: dict[str, list[RunGroup]] = {}
    for group in groups:
        methods.setdefault(group.runs[0].family, []).append(group)
    best = [max(settings, key=lambda group: validation_score(group.runs)).runs for settings in methods.values()]
    methods_on = Counter(test_set for runs in best for test_set in {(run.data, run.test) for run in runs})
    chosen = [max(runs, key=lambda run: methods_on[run.data, run.test]) for runs in best]
    first_students = {(run.data, run.test): run for run in reversed(chosen) if run.teachers}
    teachers = {name for student in first_students.values() for name in student.teacher_runs}
    every = [[run for group in settings for run in group.runs] for settings in methods.values()]
    return [next((run for run in runs if run.name in teachers), own) for runs, own in zip(every, chosen, strict=True)]


def table_rows(groups: Sequence[RunGroup], evidence: Mapping[str, Evidence], **options: str) -> list[TableRow]:
    """Returns the rows of the table, as `comparison.compare` does, with the errors of the evaluated runs by bootstrap.

    Args:
      groups: Groups of `selection.select_groups`.
      evidence: Label of a test set -> what its networks computed.
      options: Arguments baseline, interval and checkpoint of `comparison.compare`.

    Raises:
      UserError: The groups cannot be compared.
    """
    correct = {name: right for own in evidence.values() for name, right in own.correct.items()}
    return compare(groups, correct=correct, **options)


def make_page(
    store: Store,
    records: Sequence[RunRecord],
    groups: Sequence[RunGroup],
    evidence: Mapping[str, Evidence],
    *,
    title: str = "Runs",
    **options: str,
) -> Page:
    """Makes the report.

    Args:
      store: Store that holds the runs.
      records: Records of `collect.collect`.
      groups: Groups of `selection.select_groups`, which are reported.
      evidence: Label of a test set -> what the runs of `choose_networks` computed.
      title: Title of the page.
      options: Arguments baseline, interval and checkpoint of `comparison.compare`.

    Raises:
      UserError: The groups cannot be compared.
    """
    rows = table_rows(groups, evidence, **options)
    row_of = {run.name: row for row, group in zip(rows, groups, strict=True) for run in group.runs}
    drawn = [*sections.learning(store, rows, groups), *sections.generations(groups), *sections.distances(groups)]
    drawn += sections.networks(evidence, row_of, {record.name: record.teacher_runs for record in records})
    header, table = formats.cells(rows)
    return Page(
        title=title,
        lead=_lead(records, rows),
        header=header,
        table=table,
        columns=_columns(rows),
        figures=[figure for figure in drawn if figure.svg],
        missing=_missing(drawn, groups, evidence),
    )


def _lead(records: Sequence[RunRecord], rows: Sequence[TableRow]) -> list[str]:
    unfinished = [record.name for record in records if record.is_unfinished]
    lead = [f"{len(records)} runs, of which {len(records) - len(unfinished)} are finished, in {len(rows)} rows."]
    if unfinished:
        lead.append(f"Not finished: {', '.join(unfinished[:10])}{' ...' if len(unfinished) > 10 else ''}.")
    return lead


def _columns(rows: Sequence[TableRow]) -> dict[str, str]:
    """Returns the notes on the columns, with the provenance of the published accuracies."""
    numbers: dict[str, list[str]] = {}
    for row in rows:
        if row.published:
            told = row.published.provenance or "no source stated"
            told += f" (the runs have {', '.join(row.published.unlike)})" if row.published.unlike else ""
            numbers.setdefault(told, []).append(f"#{row.number}")
    if not numbers:
        return {column: note for column, note in COLUMNS.items() if column != "published"}
    listed = "; ".join(f"{', '.join(own)}: {provenance}" for provenance, own in numbers.items())
    return {**COLUMNS, "published": f"{COLUMNS['published']} {listed}."}


def _missing(drawn: Sequence[Figure], groups: Sequence[RunGroup], evidence: Mapping[str, Evidence]) -> list[str]:
    missing = [f"{figure.title}: {figure.caption}" for figure in drawn if not figure.svg]
    missing += [line for own in evidence.values() for line in own.skipped]
    methods, evaluated = len({group.runs[0].family for group in groups}), sum(len(e.outputs) for e in evidence.values())
    if evaluated < methods:
        missing.append(f"{methods - evaluated} of {methods} methods were not evaluated for the figures.")
    return missing


def write(page: Page, out: pathlib.Path | str) -> list[pathlib.Path]:
    """Writes `report.html`, which needs no other file, `report.md`, and the figures that the latter shows.

    Args:
      page: Contents of the report.
      out: Folder of the files, which is made if it does not exist.

    Returns:
      The paths of `report.html` and `report.md`.

    Raises:
      UserError: A file cannot be written.
    """
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("kdjax.reporting"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    out = pathlib.Path(out)
    paths = [out / "report.html", out / "report.md"]
    _refuse_folders([*paths, *(out / "figures" / f"{figure.name}.svg" for figure in page.figures)])
    parts = {
        "table": formats.markdown_cells(page.header, page.table),
        "figures": write_figures(page.figures, out / "figures", "--out"),
    }
    for path in paths:
        write_atomic(path, templates.get_template(path.name).render(page=page, **parts), "--out")
    return paths


def _refuse_folders(paths: Sequence[pathlib.Path]) -> None:
    """Refuses, before any file is written, a path at which there is a folder."""
    for path in paths:
        if path.is_dir():
            raise disk_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), flag="--out")
