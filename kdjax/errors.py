"""The errors that a command reports in one line with an exit code, and looking up names with help for typos."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct (exit code 2). The message is one line: what is wrong, where, what to do."""


class RunError(Exception):
    """A run that failed during training, such as a loss that is not finite (exit code 1)."""


class DivergedError(RunError):
    """Runs that ended because their losses were not finite.

    Attributes:
      runs: Names of the runs.
    """

    def __init__(self, message: str, runs: Iterable[str] = ()):
        super().__init__(message)
        self.runs = tuple(runs)


class Interrupted(Exception):
    """A run that was saved and then stopped by a signal (exit code 128 + the signal's number).

    Attributes:
      signum: Number of the signal.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' Did you mean X?' with the name closest to `name`, or ' There are: ...' if none is close."""
    names = sorted({str(other) for other in names})
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There are: {', '.join(names)}." if names else ""


def lookup(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """Returns `table[name]`, or the attribute that a `package.module:attribute` name points to.

    Args:
      table: One of kdjax's tables, name -> value (LOSSES, MODELS, DATASETS, ...).
      name: Key of the table, or `package.module:attribute` in any module that Python can import.
      kind: What the table holds, for the message: 'loss', 'model', ...

    Raises:
      UserError: The table has no such key and there is no such attribute. The message names the nearest one.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a {kind} must be a text, not {name!r}.")
    if name in table:
        return table[name]
    if ":" in name:
        return _attribute(name, kind)
    raise UserError(f"unknown {kind} '{name}'.{nearest(name, table)} For your own, write 'package.module:attribute'.")


_KEPT: dict[str, Any] = {}  # 'module:attribute' -> an object of this process that cannot be imported


def keep(path: str, value: Any) -> None:
    """Lets `lookup` find an object that cannot be imported, in this process and under a name of its own.

    Args:
      path: Name of the form 'module:attribute'; the last object of a name is found.
      value: The object.
    """
    _KEPT[path] = value


def _attribute(path: str, kind: str) -> Any:
    if path in _KEPT:
        return _KEPT[path]
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing a user's module can raise anything
        raise UserError(f"{kind} '{path}': importing {module_name} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{kind} '{path}': {module_name} has no '{attribute}'.{nearest(attribute, names)}")
    return getattr(module, attribute)
