"""The report of a store: a table of its runs, and figures of how they learned, what they say and where they look."""

import errno
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.reporting import formats, sections
from kdjax.reporting.collect import Row, is_unfinished
from kdjax.reporting.comparison import Line, compare
from kdjax.reporting.figures import Figure
from kdjax.reporting.figures import write as write_figures
from kdjax.reporting.selection import Candidate, validation_score
from kdjax.store import Store
from kdjax.store.files import disk_error, write_atomic

WHAT_THE_COLUMNS_SAY = {
    "last, best": "test accuracy in %, mean ± standard deviation over runs, of the last checkpoint and of the best one "
    "on validation.",
    "difference": "to the baseline's row (#), of the last checkpoint unless the best was asked for, between runs of "
    "one split, seed and teacher, with a 95 % interval ([ ]); 'unpaired' where the rows have no seeds in common.",
    "over": "what that interval is over: the outermost of data splits, teachers and seeds that there are several of, "
    "the inner ones averaged; of seeds beside teachers, where students of several teachers are compared with the same "
    "runs without a teacher and the seeds vary more. 'one teacher' says nothing of other teachers.",
    "test set ±": "standard error that stems from the test set's own examples, which more seeds do not lessen: by "
    "bootstrap over the examples of a run that was looked at, else binomial, of last checkpoints; of several splits "
    "that of all their test sets, which share examples.",
    "verdict": "a gain or loss if the interval leaves out zero and the difference is above 1.96 of its standard errors "
    "from the test set: by bootstrap over examples where runs of one seed were looked at in both rows, else as if each "
    "row had a test set of its own; 'cannot tell' of a single value, and of fewer than six by bootstrap.",
    "tried": "settings of the method in the store; * marks a budget (settings or examples) unlike the baseline's.",
    "examples": "training examples processed by one run, and by the run whose weights it began from; teachers' "
    "examples: by its teachers and theirs.",
}


class Page(NamedTuple):
    """What a report shows.

    Attributes:
      title: of the page.
      lead: sentences on top.
      header, table: of the main table.
      columns: column -> what it says.
      figures: those that there are.
      missing: why something is not shown, a line each.
    """

    title: str
    lead: list[str]
    header: list[str]
    table: list[list[str]]
    columns: dict[str, str]
    figures: list[Figure]
    missing: list[str]


def networks_of(found: Sequence[Candidate], most: int) -> dict[str, list[str]]:
    """Returns the runs that a report looks at: test set -> names, one of each method, students and others in turn.

    Of a method it is the run that taught a test set's first student, or else one of its best setting by validation.

    Args:
      found: of `selection.candidates`.
      most: runs for each test set; on other examples nothing can be compared.
    """
    sets: dict[str, dict[Any, list[Row]]] = {}
    for row in _one_of_each_method(found):
        sets.setdefault(row.data, {}).setdefault(row.test, []).append(row)
    names = {}
    for data, of_data in sets.items():
        for number, rows in enumerate(of_data.values(), 1):
            label = f"{data} (test set {number})" if len(of_data) > 1 else data
            names[label] = _in_turn(rows)[:most]
    return names if most else {}


def _in_turn(rows: Sequence[Row]) -> list[str]:
    """Students and others in turn, of these the first student's teachers first."""
    students, others = ([row for row in rows if bool(row.teachers) is told] for told in (True, False))
    taught_by = students[0].teacher_runs if students else ()
    others.sort(key=lambda row: row.name not in taught_by)
    turns = itertools.chain.from_iterable(itertools.zip_longest(students, others))
    return [row.name for row in turns if row is not None]


def _one_of_each_method(found: Sequence[Candidate]) -> list[Row]:
    methods: dict[str, list[Candidate]] = {}
    for candidate in found:
        methods.setdefault(candidate.rows[0].family, []).append(candidate)
    best = [max(group, key=lambda candidate: validation_score(candidate.rows)).rows for group in methods.values()]
    common = Counter(place for rows in best for place in {(row.data, row.test) for row in rows})
    chosen = [max(rows, key=lambda row: common[row.data, row.test]) for rows in best]
    first_students = {(row.data, row.test): row for row in reversed(chosen) if row.teachers}
    taught_by = {name for student in first_students.values() for name in student.teacher_runs}
    every = [[row for candidate in group for row in candidate.rows] for group in methods.values()]
    return [next((row for row in rows if row.name in taught_by), own) for rows, own in zip(every, chosen, strict=True)]


def lines_of(found: Sequence[Candidate], evidence: Mapping[str, Any], **options: str) -> list[Line]:
    """Returns the table's rows, as `compare` does, with what the networks that were looked at have right."""
    correct = {name: right for seen in evidence.values() for name, right in seen.correct.items()}
    return compare(found, correct=correct, **options)


def make_page(
    store: Store,
    rows: Sequence[Row],
    found: Sequence[Candidate],
    evidence: Mapping[str, Any],
    *,
    title: str = "Runs",
    **options: str,
) -> Page:
    """Makes the report.

    Args:
      store: that has the runs.
      rows: of `collect`.
      found: of `selection.candidates`, which are reported.
      evidence: test set -> `studies.evidence.Evidence` of the runs of `networks_of`.
      title: of the page.
      options: baseline, interval and checkpoint, as `comparison.compare` takes them.

    Raises:
      UserError: as `compare`.
    """
    lines = lines_of(found, evidence, **options)
    numbers = {row.name: line for line, candidate in zip(lines, found, strict=True) for row in candidate.rows}
    drawn = [*sections.learning(store, lines, found), *sections.generations(found), *sections.distances(found)]
    drawn += sections.networks(evidence, numbers, {row.name: row.teacher_runs for row in rows})
    missing = [f"{figure.title}: {figure.caption}" for figure in drawn if not figure.svg]
    missing += [line for seen in evidence.values() for line in seen.skipped]
    methods, looked = len({own.rows[0].family for own in found}), sum(len(seen.outputs) for seen in evidence.values())
    missing += [f"{methods - looked} of {methods} methods were not run for figures."] if looked < methods else []
    unfinished = [row.name for row in rows if is_unfinished(row)]
    lead = [f"{len(rows)} runs, of which {len(rows) - len(unfinished)} are finished, in {len(lines)} rows."]
    lead += (
        [f"Not finished: {', '.join(unfinished[:10])}{' ...' if len(unfinished) > 10 else ''}."] if unfinished else []
    )
    header, table = formats.cells(lines)
    shown = [figure for figure in drawn if figure.svg]
    return Page(title, lead, header, table, WHAT_THE_COLUMNS_SAY, shown, missing)


def write(page: Page, out: pathlib.Path | str) -> list[pathlib.Path]:
    """Writes `report.html`, which is whole in itself, `report.md`, and the figures that it shows.

    Args:
      page: to write.
      out: folder, made where it is not there.

    Returns:
      The two files.

    Raises:
      UserError: it cannot be written.
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
    """A folder that stands where a file should be is found before the first file is written."""
    for path in paths:
        if path.is_dir():
            raise disk_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), flag="--out")
