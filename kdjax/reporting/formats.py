"""The report's table as text: for people in Markdown, for programs as CSV and JSON, for papers in LaTeX."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence

from kdjax.errors import UserError, nearest
from kdjax.reporting.comparison import Line
from kdjax.reporting.tables import markdown
from kdjax.store.files import plain

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}
HEADER = (
    *("#", "data", "network", "method", "loss", "teacher", "setting", "runs", "last", "best", "published"),
    *("difference", "over", "verdict", "test set ±", "tried", "examples", "teachers' examples"),
)


def cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows for people; columns in which no row has anything are left out."""
    rows = [_cells(line) for line in lines]
    kept = [i for i, title in enumerate(HEADER) if title in ("#", "runs", "last") or any(row[i] for row in rows)]
    return [HEADER[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _cells(line: Line) -> list[str]:
    published = "" if line.published is None else f"{line.published:.2f}"
    setting = "; ".join(filter(None, (line.setting, line.note)))
    method = "" if line.method == line.loss else line.method  # a config without a name of its own
    return [
        *(str(line.number), line.data, line.network, " ".join(method.split()), line.loss, line.teacher, setting),
        *(str(line.runs), spread(line.last), spread(line.best), published, difference(line), line.over, line.verdict),
        f"{line.test_error:.2f} {line.test_error_by}",
        *(str(line.tried) + ("*" if line.unequal else ""), _count(line.examples), _count(line.teacher_examples)),
    ]


def spread(value: tuple[float, float | None] | None) -> str:
    """Shows a mean and, of several runs, its standard deviation."""
    if value is None:
        return ""
    mean, std = value
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def difference(line: Line) -> str:
    """Shows a row's difference with its interval, and the row that it is to."""
    if line.difference is None:
        return ""
    mean, low, high, units = line.difference
    bounds = f" [{low:+.2f}, {high:+.2f}]" if units > 1 else ""
    return f"{mean:+.2f}{bounds} to #{line.against}"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def markdown_table(lines: Sequence[Line]) -> str:
    """Returns the table in Markdown."""
    return markdown_cells(*cells(lines))


def markdown_cells(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns what `cells` returned in Markdown."""
    return markdown(header, [[markdown_escape(cell) for cell in row] for row in rows])


def markdown_escape(text: str) -> str:
    """Returns text that stays in its cell and is no HTML."""
    return re.sub(r"([\\|<])", r"\\\1", text)


def records(lines: Sequence[Line]) -> list[dict]:
    """Returns a flat mapping for each row, of JSON's types; None where there is nothing."""
    return [_record(line) for line in lines]


def _record(line: Line) -> dict:
    record = line._asdict()
    for name in ("last", "best"):
        mean, std = record.pop(name) or (None, None)
        record |= {f"{name}_mean": mean, f"{name}_std": std}
    found = record.pop("difference")
    bounds = (None, None, None) if found is None else found[:3]
    record |= dict(zip(("difference", "difference_low", "difference_high"), bounds, strict=True))
    return plain(record)


def csv_text(lines: Sequence[Line]) -> str:
    """Returns the table as comma-separated values with a header."""
    rows = records(lines)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def json_text(lines: Sequence[Line]) -> str:
    """Returns the table as a JSON list."""
    return json.dumps(records(lines), indent=2) + "\n"


def latex_text(lines: Sequence[Line]) -> str:
    """Returns the table as a LaTeX tabular for the booktabs package."""
    header, rows = cells(lines)
    body = [" & ".join(map(latex_escape, row)) + r" \\" for row in rows]
    top = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", " & ".join(map(latex_escape, header)) + r" \\"]
    return "\n".join([*top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def latex_escape(text: str) -> str:
    """Returns text in which no character means anything to LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


def number(value: float, digits: int = 2) -> str:
    """Shows a number, '-' for one that is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


# What --format may name -> (lines) -> text.
FORMATS = {"csv": csv_text, "json": json_text, "latex": latex_text}


def check(name: str) -> None:
    """Raises UserError for what --format may not name; it may be empty."""
    if name and name not in FORMATS:
        raise UserError(f"--format='{name}' is none.{nearest(name, FORMATS)}")


def as_text(lines: Sequence[Line], name: str) -> str:
    """Returns the table in a format of FORMATS."""
    return FORMATS[name](lines)
