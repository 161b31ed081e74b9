"""The report's table as text: Markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
import re
from collections.abc import Sequence

from kdjax.errors import UserError, nearest
from kdjax.reporting.published import Published
from kdjax.reporting.table_row import TableRow
from kdjax.reporting.tables import bounds, markdown
from kdjax.store.files import plain

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}
HEADER = (
    *("#", "data", "network", "method", "loss", "teacher", "setting", "runs", "last", "best", "published"),
    *("difference", "over", "verdict", "test set ±", "tried", "examples", "teachers' examples"),
)

MOST_NAMED = 3  # differences from a paper's recipe that a cell names; the note under the table has all

# Columns of the LaTeX table -> their titles there; --columns adds others of HEADER between teacher and accuracy.
PAPER = {"method": "Method", "teacher": "Teacher", "last": "Accuracy [%]", "difference": "Difference", "runs": "n"}


def cells(rows: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the cells of each row, without the columns that are empty in all rows."""
    every = [_cells(row) for row in rows]
    shown = [i for i, title in enumerate(HEADER) if title in ("#", "runs", "last") or any(row[i] for row in every)]
    return [HEADER[i] for i in shown], [[row[i] for i in shown] for row in every]


def _cells(row: TableRow) -> list[str]:
    setting = "; ".join(filter(None, (row.setting, row.note)))
    method = "" if row.method == row.loss else row.method  # a config without a name of its own
    return [
        *(str(row.number), row.data, row.network, " ".join(method.split()), row.loss, row.teacher, setting),
        *(str(row.runs), spread(row.last), spread(row.best), published(row.published)),
        *(difference(row), row.over, row.verdict, f"{row.test_error:.2f} {row.test_error_by}"),
        *(str(row.tried) + ("*" if row.unequal else ""), _count(row.examples), _count(row.teacher_examples)),
    ]


def spread(value: tuple[float, float | None] | None) -> str:
    """Formats a mean with its standard deviation, which is None for a single run."""
    if value is None:
        return ""
    mean, std = value
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def published(number: Published | None) -> str:
    """Formats a published accuracy with its source and epoch, and with what the run has otherwise than the paper."""
    if number is None:
        return ""
    text = f"{number.accuracy:.2f}" + (f" ({number.origin})" if number.origin else "")
    first, more = number.unlike[:MOST_NAMED], number.unlike[MOST_NAMED:]
    rest = f" and {len(more)} more" if more else ""
    return f"{text}; not the paper's recipe: {', '.join(first)}{rest}" if first else text


def difference(row: TableRow) -> str:
    """Formats a row's difference with its interval and the number of the baseline's row."""
    if row.difference is None:
        return ""
    return f"{row.difference.mean:+.2f}{bounds(row.difference)} to #{row.against}"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def markdown_table(rows: Sequence[TableRow]) -> str:
    """Returns the table in Markdown."""
    return markdown_cells(*cells(rows))


def markdown_cells(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a header and cells of `cells` as a Markdown table."""
    return markdown(header, [[markdown_escape(cell) for cell in row] for row in rows])


def markdown_escape(text: str) -> str:
    """Returns text in which no character ends a cell or begins HTML."""
    return re.sub(r"([\\|<])", r"\\\1", text)


def records(rows: Sequence[TableRow]) -> list[dict[str, object]]:
    """Returns a flat mapping of JSON's types for each row; a missing value is None."""
    return [_record(row) for row in rows]


def _record(row: TableRow) -> dict[str, object]:
    record: dict[str, object] = row._asdict()
    for name in ("last", "best", "difference"):
        del record[name]
    record["published"] = row.published and row.published.accuracy
    record["published_from"] = row.published.provenance if row.published else ""
    record["published_unlike"] = "; ".join(row.published.unlike) if row.published else ""
    for name, value in (("last", row.last), ("best", row.best)):
        record[f"{name}_mean"], record[f"{name}_std"] = value or (None, None)
    bounds = (None, None, None) if row.difference is None else row.difference[:3]
    record["difference"], record["difference_low"], record["difference_high"] = bounds
    return plain(record)


def csv_text(rows: Sequence[TableRow]) -> str:
    """Returns the table as comma-separated values with a header."""
    lines = records(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(lines[0]) if lines else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def json_text(rows: Sequence[TableRow]) -> str:
    """Returns the table as a JSON list."""
    return json.dumps(records(rows), indent=2) + "\n"


def latex_text(rows: Sequence[TableRow], columns: Sequence[str] = ()) -> str:
    """Returns the table as a LaTeX tabular for a paper, which needs the package booktabs.

    Args:
      rows: Rows of the table.
      columns: Names of HEADER that are shown beside those of PAPER.
    """
    names = ["method", "teacher", *columns, "last", "difference", "runs"]
    baselines = {row.against: _name_of(rows[row.against - 1]) for row in rows if row.against}
    titles = (
        {**PAPER, "difference": f"Difference to {next(iter(baselines.values()))}"} if len(baselines) == 1 else PAPER
    )
    header, body = [titles.get(name, name) for name in names], []
    for row in rows:
        own = dict(zip(HEADER, _cells(row), strict=True))
        gain = own["difference"].rpartition(" to #")[0]  # the rows of a paper have no numbers
        if gain and len(baselines) > 1 and row.against:
            gain += f" to {baselines[row.against]}"
        own |= {"method": _name_of(row), "difference": gain}
        body.append([own[name] for name in names])
    lines = [" & ".join(map(latex_escape, row)) + r" \\" for row in [header, *body]]
    top = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", lines[0]]
    return "\n".join([*top, r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


def _name_of(row: TableRow) -> str:
    """Returns a method's name: that of its config, or else its losses."""
    return " ".join(row.method.split()) or row.loss


def latex_escape(text: str) -> str:
    """Returns text in which no character has a meaning to LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


# Value of --format -> function that returns the table as text.
FORMATS = {"csv": csv_text, "json": json_text, "latex": latex_text}


def check(name: str, columns: Sequence[str] = ()) -> None:
    """Raises a UserError for an unknown value of --format, where '' is allowed, or of --columns."""
    if name and name not in FORMATS:
        raise UserError(f"unknown --format '{name}'.{nearest(name, FORMATS)}")
    if columns and name != "latex":
        raise UserError("--columns adds columns to --format=latex; the other formats have all of them.")
    for column in columns:
        if column in PAPER:
            raise UserError(f"--columns: '{column}' is in the table already.")
        if column not in HEADER:
            raise UserError(f"--columns: there is no column '{column}'.{nearest(column, HEADER)}")


def as_text(rows: Sequence[TableRow], name: str, columns: Sequence[str] = ()) -> str:
    """Returns the table in a format of FORMATS.

    Args:
      rows: Rows of the table.
      name: Key of FORMATS.
      columns: Further columns of the LaTeX table; see `latex_text`.
    """
    return latex_text(rows, columns) if name == "latex" else FORMATS[name](rows)
