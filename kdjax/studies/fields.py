"""Reads a study from a config: every unknown, missing and mistyped field is reported, all of them in one line."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from ml_collections import ConfigDict

from kdjax.errors import UserError, nearest

Fields = TypeVar("Fields")
Terms = Mapping[str, Mapping]  # name of a loss -> its weight and hyper-parameters

if TYPE_CHECKING:

    class RunConfig(ConfigDict):
        """A config as type checkers see it: its fields may have any values."""

        def __getattr__(self, attribute: str) -> Any: ...

        def get(self, key: str, default: Any = None) -> Any: ...

else:
    RunConfig = ConfigDict

_SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def read_fields(schema: type[Fields], config: Mapping | ConfigDict, where: str = "config") -> Fields:
    """Returns a dataclass with the values of a config.

    Fields may be annotated with bool, int, float, str, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, `dict` for
    mappings with any values, `RunConfig` for configs of runs, and with other dataclasses of such fields. A field may
    have another name in configs: `dataclasses.field(metadata={"name": "report"})`.

    Args:
      schema: The dataclass; a field without a default must be in the config.
      config: The config.
      where: What messages call the config.

    Raises:
      UserError: Names all unknown fields with the nearest right name, all missing fields, and all wrong types.
    """
    problems: list[str] = []
    value = _convert(schema, config, where, problems)
    if problems:
        raise UserError(" ".join(problems))
    return value


def _convert(kind: Any, value: object, where: str, problems: list[str]) -> Any:
    """Returns a value in the annotated type and adds what is wrong with it to the problems."""
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where, problems)
    if kind in _SCALARS:
        return _convert_scalar(kind, value, where, problems)
    if get_origin(kind) is tuple:
        return _convert_tuple(get_args(kind), value, where, problems)
    if not isinstance(value, Mapping | ConfigDict):
        problems.append(f"{where} must be a mapping, not {value!r}.")
        return value
    if kind is dict:
        return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
    if kind is RunConfig:
        return value if isinstance(value, ConfigDict) else ConfigDict(value)
    _, item_kind = get_args(kind)
    return {name: _convert(item_kind, item, f"{where}.{name}", problems) for name, item in value.items()}


def _convert_scalar(kind: type, value: object, where: str, problems: list[str]) -> object:
    allowed = int | float if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where} must be {_SCALARS[kind]}, not {value!r}.")
    return value


def _convert_tuple(kinds: tuple, value: object, where: str, problems: list[str]) -> object:
    if not isinstance(value, tuple | list):
        problems.append(f"{where} must be a tuple, not {value!r}.")
        return value
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        problems.append(f"{where} must have {len(kinds)} entries, not {value!r}.")
        return value
    items = zip(kinds, value, strict=True)
    return tuple(_convert(kind, item, f"{where}[{place}]", problems) for place, (kind, item) in enumerate(items))


def _convert_dataclass(schema: Any, value: object, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping | ConfigDict):
        problems.append(f"{where} must be a mapping, not {value!r}.")
        return value
    kinds, found = get_type_hints(schema), {}
    fields = {field.metadata.get("name", field.name): field for field in dataclasses.fields(schema)}
    problems += [f"{where} has no field '{name}'.{nearest(name, fields)}" for name in value if name not in fields]
    for name, field in fields.items():
        if name in value:
            found[field.name] = _convert(kinds[field.name], value[name], f"{where}.{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name} is missing.")
    return value if problems else schema(**found)


def check_at_least(least: int, **counts: int) -> None:
    """Refuses fields of a study that are below a least number.

    Args:
      least: The least number.
      **counts: Names of fields and their values.

    Raises:
      UserError: Names the first field that is too small.
    """
    for name, count in counts.items():
        if count < least:
            raise UserError(f"config.{name} must be at least {least}, not {count}.")


def check_known(where: str, names: Mapping | tuple | list, known: Mapping | tuple | list) -> None:
    """Refuses names that a study does not have.

    Args:
      where: Field of the names.
      names: Names that the field uses.
      known: Names that exist.

    Raises:
      UserError: Names the first unknown one and the nearest known name.
    """
    for name in names:
        if name not in known:
            raise UserError(f"config.{where}: unknown name '{name}'.{nearest(name, known)}")


def known_distributions(soft: np.ndarray | None) -> np.ndarray:
    """Returns the label distributions of a data set, which must have them.

    Args:
      soft: Distributions [examples, classes]; None where the data set has only labels.

    Raises:
      UserError: The data set has only labels.
    """
    if soft is None:
        raise UserError("this study needs a data set with label distributions, such as gaussian or cifar10h.")
    return soft
