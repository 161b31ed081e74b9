"""Matches the arguments that a user gave with the signature of the function that takes them."""

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.errors import UserError, nearest

KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a text", None: "None"}


class Signature(NamedTuple):
    """What a function takes by name.

    Attributes:
      parameters: Name -> parameter, in order, without *args and **kwargs.
      takes_any: Whether it has **kwargs.
    """

    parameters: dict[str, inspect.Parameter]
    takes_any: bool

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the parameters without a default."""
        return tuple(name for name, p in self.parameters.items() if p.default is p.empty)

    @property
    def positional(self) -> tuple[str, ...]:
        """Names of the parameters that are not keyword-only."""
        return tuple(name for name, p in self.parameters.items() if p.kind is not p.KEYWORD_ONLY)


def signature_of(function: Callable, *, skip: Collection[str] = (), leading: int = 0) -> Signature:
    """Returns a function's signature without the parameters that the program passes itself.

    Args:
      function: Any callable.
      skip: Names of parameters to leave out.
      leading: Number of parameters at the front to leave out, whatever their names.

    Raises:
      TypeError, ValueError: Python does not know the function's signature.
    """
    everything = list(inspect.signature(function).parameters.values())[leading:]
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {p.name: p for p in everything if p.kind not in variadic and p.name not in skip}
    return Signature(named, any(p.kind is p.VAR_KEYWORD for p in everything))


def hashable(function: Callable) -> Callable:
    """Returns the callable if it has a hash, else a wrapper that has one: compiled steps are looked up by functions."""
    return function if isinstance(function, Hashable) else functools.partial(function)


def select_arguments(signature: Signature, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the offered arguments that a function names among its parameters."""
    return {name: offered[name] for name in signature.parameters if name in offered}


def check_arguments(
    signature: Signature, given: Mapping[str, Any], *, field: str, owner: str, also: Collection[str] = ()
) -> None:
    """Refuses arguments that a function does not take, missing ones that it needs, and values of a wrong type.

    Args:
      signature: Signature of the function, without what the program passes itself.
      given: Name -> value, as the user wrote them.
      field: Where in the config they stand, such as 'config.losses.kd'.
      owner: What takes them, such as "loss 'kd'".
      also: Further names that the same field of the config may hold, for the hint.

    Raises:
      UserError: An argument is unknown (the message names the nearest one), missing, or not of the type that the
        function's annotation says.
    """
    for name in given:
        if name not in signature.parameters and not signature.takes_any:
            raise UserError(f"{field}: {owner} takes no '{name}'.{nearest(name, [*signature.parameters, *also])}")
    for name in signature.required:
        if name not in given:
            raise UserError(f"{field}: {owner} needs '{name}'; set it, as by --{field}.{name}=VALUE.")
    for name, value in given.items():
        if name in signature.parameters:
            _check_type(value, signature.parameters[name], f"{field}.{name}")


def _check_type(value: Any, parameter: inspect.Parameter, where: str) -> None:
    """Refuses a value that is not of the annotated type, where the annotation is one that can be compared."""
    kind, default = parameter.annotation, parameter.default
    if _fits(value, kind) or (default is not parameter.empty and not _fits(default, kind)):  # else it says nothing
        return
    example = f", such as {default!r}" if isinstance(default, list | tuple) and default else ""
    raise UserError(f"{where} must be {_words(kind)}{example}, not {value!r}.")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; True for annotations other than plain values and sequences of them."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_fits(value, part) for part in typing.get_args(kind))
    if _is_sequence(kind):
        parts = [part for part in typing.get_args(kind) if part is not ...]
        alike = isinstance(value, list | tuple)
        return alike and (len(parts) != 1 or all(_fits(item, parts[0]) for item in value))
    if kind in (None, type(None)):
        return value is None
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)
    if number is not None:
        return isinstance(value, number) and not isinstance(value, bool)
    return kind not in (bool, str) or isinstance(value, kind)


def _is_sequence(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in (tuple, list, Sequence)


def _words(kind: Any) -> str:
    """Returns what values fit an annotation."""
    parts = [part for part in typing.get_args(kind) if part is not ...]
    if _is_sequence(kind):
        return f"a list whose items are each {_words(parts[0])}" if len(parts) == 1 else "a list"
    return " or ".join(map(_words, parts)) if parts else KINDS.get(None if kind is type(None) else kind, str(kind))


def resolve_arguments(
    signature: Signature, given: Mapping[str, Any], *, field: str, owner: str, also: Collection[str] = ()
) -> dict[str, Any]:
    """Checks arguments, fills in the defaults and converts integers to floats where the function wants a float.

    Args:
      signature, given, field, owner, also: See `check_arguments`.

    Returns:
      Name -> value of every argument.

    Raises:
      UserError: An argument is unknown, missing, or of a wrong type.
    """
    check_arguments(signature, given, field=field, owner=owner, also=also)
    resolved = dict(given)
    for name, parameter in signature.parameters.items():
        value = given.get(name, parameter.default)
        wants_float = parameter.annotation is float or isinstance(parameter.default, float)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        resolved[name] = float(value) if wants_float and is_int else value
    return resolved
