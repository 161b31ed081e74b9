"""Config files: reading one, and overriding its fields, by the same rules on the command line and in Python."""

import ast
import importlib.util
import itertools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kdjax.config import FREE, check, recipe
from kdjax.errors import UserError, nearest
from kdjax.run_names import note_changes

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_WORDS = {bool: "true or false", int: "an integer", float: "a number", tuple: "a tuple, such as (1, 2)"}
_FREE = tuple(section.removeprefix("config.") for section in FREE)


class Override(NamedTuple):
    """A field of a config that a command line sets.

    Attributes:
      argument: The argument as the user wrote it, for messages.
      path: Dotted path of the field without 'config.'.
      text: Its value; None for a flag without one, `--config.diagnostics`.
    """

    argument: str
    path: str
    text: str | None


def load_config(file: os.PathLike | str, /, **fields: Any) -> ConfigDict:
    """Returns the config of a file with some fields overridden, checked as the commands check it.

    Args:
      file: Path of the file, or 'FILE:ARGUMENT', such as 'configs/wttm_student.py:cifar100'.
      **fields: Dotted path -> value, such as `**{'losses.wttm.gamma': 0.2}`.

    Raises:
      UserError: There is no such file, it fails, a field does not exist or has a value of a wrong type or range.
    """
    config = read(os.fspath(file))
    before = config.to_dict()
    for path, value in fields.items():
        value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value  # NumPy's numbers
        set_field(config, path, value, f"{path}={value!r}")
    note_changes(config, before)
    if "losses" in config and "epochs" in config:  # a config of a run; studies check their fields when they run
        check(config)
    return config


def read(file: str) -> ConfigDict:
    """Returns the config that a file's `get_config` makes.

    Args:
      file: Path of the file, or 'FILE:ARGUMENT'.

    Raises:
      UserError: There is no such file, or it fails.
    """
    path, colon, argument = file.partition(":")
    make_importable(path)
    try:
        spec: Any = importlib.util.spec_from_file_location(f"kdjax_config_{pathlib.Path(path).stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if colon else module.get_config()
    except UserError:
        raise
    except Exception as error:  # a config file is the user's code and can raise anything
        raise UserError(f"config file {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file {path}: get_config must return a ConfigDict, not a {type(config).__name__}.")
    published = config.get("published")
    if published and "recipe" not in published:  # before anything is overridden, which the number does not belong to
        published.recipe = recipe(config)
    return config


def make_importable(file: str) -> None:
    """Checks that a config file exists and lets it import `configs.common`, whatever the current folder is.

    Raises:
      UserError: There is no such file; the message has the nearest name.
    """
    path = pathlib.Path(file).resolve()
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*.py")]
        raise UserError(f"--config: there is no file {path}.{nearest(path.name, others) if others else ''}")
    roots = [str(parent) for parent in path.parents if (parent / "configs" / "common.py").is_file()]
    sys.path[:0] = [root for root in roots[:1] if root not in sys.path]


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Divides a command line into its other arguments and the overrides of the config's fields.

    An override is `--config.a.b=value` or `--config.a.b value`; for booleans also `--config.a.b` and `--noconfig.a.b`.

    Args:
      argv: Command line.
    """
    rest, found, arguments = [], [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith(("config.", "noconfig.")):
            rest.append(argument)
            continue
        path = name.partition(".")[2]
        if name.startswith("no"):
            found.append(Override(argument, path, "false"))
        elif equals:
            found.append(Override(argument, path, text))
        elif arguments and not arguments[0].startswith("--"):
            found.append(Override(f"{argument} {arguments[0]}", path, arguments.pop(0)))
        else:
            found.append(Override(argument, path, None))
    return rest, found


def apply_overrides(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets fields as a command line asks for it, and notes what it changed in the config.

    Args:
      config: Config to change.
      overrides: The overrides, in their order.

    Raises:
      UserError: A field does not exist, or its type does not allow the value.
    """
    before = config.to_dict()
    for override in overrides:
        apply_override(config, override)
    note_changes(config, before)


def apply_override(config: ConfigDict, override: Override) -> None:
    """Sets a field as a command line asks for it.

    Args:
      config: Config to change.
      override: The override.

    Raises:
      UserError: The field does not exist, or its type does not allow the value.
    """
    *parents, last = override.path.split(".")
    old = _find(config, parents, last, override.argument).get(last)
    set_field(config, override.path, _value(override, old), override.argument)


def set_field(config: ConfigDict, path: str, value: Any, said: str) -> None:
    """Sets a field of a config.

    Sections with names that the user gives, such as `losses`, `data.protocols` and `model.args`, take new fields.

    Args:
      config: Config to change.
      path: Dotted path of the field.
      value: Its new value.
      said: What the user wrote, for messages.

    Raises:
      UserError: The field does not exist, or its type does not allow the value.
    """
    *parents, last = path.split(".")
    section, free = _find(config, parents, last, said), _is_free(path)
    if last not in section and not free:
        raise UserError(f"{said}: {_no_field(parents, last, section)}")
    old = section.get(last)
    # A section that takes new fields takes new values too, but a word in place of a number is a slip of the pen.
    number = ".args." in f".{path}" and isinstance(old, int | float) and not isinstance(old, bool)
    if (not free and not _fits(value, old)) or (number and isinstance(value, str)):
        raise UserError(f"{said}: config.{path} must be {_words(old)}, not {value!r}.")
    dropped = _leftovers(config, value) if path == "model.name" and value != old else ""
    with config.unlocked(), config.ignore_type():
        section[last] = float(value) if isinstance(old, float) and type(value) is int else _as_config(value)
        if dropped:
            config.model.args = ConfigDict()
            config.notes = (*config.notes, dropped)


def _find(config: ConfigDict, parents: Sequence[str], last: str, said: str) -> ConfigDict:
    """Returns the section at a path, which is made where the config takes new fields."""
    section: Any = config
    for depth, (name, rest) in enumerate(itertools.pairwise((*parents, last))):
        if name not in section:
            if not _is_free(".".join(parents[: depth + 1])):
                raise UserError(f"{said}: {_no_field(parents[:depth], name, section)}")
            with config.unlocked(), config.ignore_type():
                section[name] = ConfigDict()
        section = section[name]
        if not isinstance(section, ConfigDict):
            where = ".".join(("config", *parents[: depth + 1]))
            raise UserError(f"{said}: {where} is not a mapping, so it has no field '{rest}'.")
    return section


def _no_field(parents: Sequence[str], name: str, section: ConfigDict) -> str:
    where = ".".join(("config", *parents))
    return (
        f"{where} has no field '{name}'.{nearest(name, section)} An override changes a field of the config; it "
        f"adds one only to {', '.join(_FREE)}."
    )


def _is_free(path: str) -> bool:
    """Whether a path lies inside a section that takes new fields, of a run's config or of one within a study."""
    return any(f".{section}." in f".{path}" for section in _FREE)


def _leftovers(config: ConfigDict, name: Any) -> str:
    """Returns a note if the arguments of the former network are dropped, since another one does not take them."""
    args = config.model.get("args", {})
    if not args:
        return ""
    return f"config.model.args of '{config.model.name}' ({', '.join(args)}) are dropped: the network is '{name}' now."


def _value(override: Override, old: Any) -> Any:
    """Returns an override's text as a value of the field's type."""
    text = override.text
    if text is None:
        if not isinstance(old, bool):
            raise UserError(f"{override.argument}: the value is missing; write {override.argument}=VALUE.")
        return True
    if isinstance(old, bool):
        return _BOOLEANS.get(text.lower(), text)
    if isinstance(old, str):
        return text
    if isinstance(old, float):
        return _float(text)
    value = _literal(text)
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    return value


def _float(text: str) -> Any:
    """Returns the number, 'inf' and 'nan' included, or whatever else the text says."""
    try:
        return float(text)
    except ValueError:
        return _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text, text)


def _fits(value: Any, old: Any) -> bool:
    if isinstance(old, bool) or isinstance(value, bool):
        return isinstance(old, bool) and isinstance(value, bool)
    if isinstance(old, float):
        return isinstance(value, int | float)
    if isinstance(old, tuple | list):
        return isinstance(value, tuple | list)
    if isinstance(old, ConfigDict):
        return isinstance(value, ConfigDict | dict)
    return old is None or isinstance(value, type(old))


def _words(old: Any) -> str:
    """Returns what values a field takes, with its present value as an example."""
    if isinstance(old, ConfigDict):
        return f"a mapping; set one of its fields: {', '.join(old) or 'it has none'}"
    return f"{_WORDS.get(type(old), f'a {type(old).__name__}')} (it is {old!r})"


def _as_config(value: Any) -> Any:
    return ConfigDict(value) if isinstance(value, dict) else value
