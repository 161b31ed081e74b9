"""What a benchmark leaves: tables, printed as Markdown and written as JSON, which `bench compare` reads."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from kdjax.errors import UserError
from kdjax.reporting.tables import markdown
from kdjax.store.files import write_json


class Table(NamedTuple):
    """A table of measurements.

    Attributes:
      header: Titles of the columns.
      rows: Cells of each row, numbers or text that begins with one.
      keys: Number of leading columns that name a row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    keys: int = 1


def publish(flag: Any, note: str, *tables: Table) -> None:
    """Prints a note and tables, and writes them to the file that --json names.

    Args:
      flag: The command's flags.
      note: A line about the machine and the settings.
      *tables: The tables.
    """
    print("\n\n".join([note, *(markdown(table.header, table.rows) for table in tables)]), flush=True)
    save(flag, note, *tables)


def save(flag: Any, note: str, *tables: Table) -> None:
    """Writes a note and tables to the file that --json names, and nothing if it names none."""
    if flag.json:
        write_json(pathlib.Path(flag.json), {"note": note, "tables": [table._asdict() for table in tables]}, "--json")


def load(path: str) -> list[Table]:
    """Returns the tables of a file that --json has made.

    Raises:
      UserError: There is no such file, or it holds something else.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text())
        return [Table(**table) for table in found["tables"]]
    except OSError as error:
        make = f"write it with: python -m kdjax.bench ... --json={path}"
        raise UserError(f"{path} cannot be read ({error.strerror}); {make}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the output of a benchmark; write one with --json=FILE.") from error
