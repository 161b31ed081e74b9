"""Prints the ratios of two outputs of a benchmark that were written with --json."""

import re
from collections.abc import Sequence
from typing import Any

from kdjax.bench.results import Table, load
from kdjax.errors import UserError
from kdjax.reporting.tables import markdown


def show(old: str, new: str) -> None:
    """Prints for every number of the tables in two files the second one divided by the first."""
    print(comparison(old, new))


def comparison(old: str, new: str) -> str:
    """Returns tables of the ratios: what is in both files, number by number, and a line about what is in one alone.

    Args:
      old: File A.
      new: File B.

    Raises:
      UserError: A file cannot be read, or the two have no row in common.
    """
    before, after = ({tuple(table.header): table for table in load(path)} for path in (old, new))
    shared = [header for header in after if header in before]
    parts = [ratios(before[header], after[header]) for header in shared]
    if not any(parts):
        raise UserError(f"{old} and {new} have no row in common; compare two outputs of one benchmark.")
    alone = [line for header in shared for line in _alone(before[header], after[header], old, new)]
    return "\n\n".join([f"Each number of {new} divided by that of {old}", *filter(None, parts), *alone])


def ratios(before: Table, after: Table) -> str:
    """Returns the table of ratios of the rows that two tables share, '' if there is none; text stays as it is."""
    earlier = _by_key(before)
    rows = [
        (*key, *map(_ratio, earlier[key], row[after.keys :]))
        for key, row in ((_key(row, after.keys), row) for row in after.rows)
        if key in earlier
    ]
    return markdown(tuple(after.header), rows) if rows else ""


def _by_key(table: Table) -> dict[tuple[str, ...], Sequence[Any]]:
    return {_key(row, table.keys): row[table.keys :] for row in table.rows}


def _key(row: Sequence[Any], keys: int) -> tuple[str, ...]:
    return tuple(map(str, row[:keys]))


def _ratio(before: Any, after: Any) -> str:
    a, b = number(before), number(after)
    if a is None or b is None:
        return str(after) if before == after else f"{before} → {after}"
    return f"{b / a:.3f}" if a else ("1.000" if not b else "-")


def number(cell: Any) -> float | None:
    """Returns the number that a cell is or begins with, such as 1204.5 of '1,204.5 [1,190.1]'; None for text."""
    found = re.match(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?", str(cell).strip())
    return float(found[0].replace(",", "")) if found else None


def _alone(before: Table, after: Table, old: str, new: str) -> list[str]:
    a, b = _by_key(before), _by_key(after)
    missing = {old: [key for key in b if key not in a], new: [key for key in a if key not in b]}
    return [f"{path} lacks: {'; '.join(map(' '.join, keys))}" for path, keys in missing.items() if keys]
