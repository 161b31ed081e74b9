"""What a door turns into one line and an exit code, and how a name is looked up with help for typos."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where and what to do (exit code 2)."""


class RunError(Exception):
    """A run that failed on its own, such as a loss that is not finite (exit code 1)."""


class Interrupted(Exception):
    """A run that a signal stopped after it was saved (exit code 128 + signal number)."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' Did you mean X?' for the closest of `names`, else the names there are."""
    names = sorted(str(n) for n in names)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There are: {', '.join(names)}." if names else ""


def lookup(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """Returns `table[name]`, or the attribute that a `package.module:attribute` name points to.

    Args:
      table: name -> value, one of kdjax's visible tables (LOSSES, MODELS, DATASETS, ...).
      name: a key of the table, or `package.module:attribute` from any module that Python can import.
      kind: what the table holds, for the message: 'loss', 'model', ...

    Raises:
      UserError: the name is in neither place; the message names the nearest one.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return _attribute(name, kind)
    raise UserError(f"unknown {kind} '{name}'.{nearest(name, table)} Your own: 'package.module:attribute'.")


def _attribute(path: str, kind: str) -> Callable:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # anything can go wrong while a user's module is imported
        raise UserError(f"{kind} '{path}': importing {module_name} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{kind} '{path}': {module_name} has no '{attribute}'.{nearest(attribute, names)}")
    return getattr(module, attribute)
