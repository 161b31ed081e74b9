"""Matches the arguments that a user gave with the signature of the function that takes them."""

import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, NamedTuple

from kdjax.errors import UserError, nearest


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
    """Refuses arguments that a function does not take, and missing ones that it needs.

    Args:
      signature: Signature of the function, without what the program passes itself.
      given: Name -> value, as the user wrote them.
      field: Where in the config they stand, such as 'config.losses.kd'.
      owner: What takes them, such as "loss 'kd'".
      also: Further names that the same field of the config may hold, for the hint.

    Raises:
      UserError: An argument is unknown (the message names the nearest one) or missing.
    """
    for name in given:
        if name not in signature.parameters and not signature.takes_any:
            raise UserError(f"{field}: {owner} takes no '{name}'.{nearest(name, [*signature.parameters, *also])}")
    for name in signature.required:
        if name not in given:
            raise UserError(
                f"{field}: {owner} needs '{name}'; set {field}.{name} in the config file (a flag alone adds no field)."
            )


def resolve_arguments(signature: Signature, given: Mapping[str, Any], *, field: str, owner: str) -> dict[str, Any]:
    """Checks arguments, fills in the defaults and converts integers to floats where the function wants a float.

    Args:
      signature, given, field, owner: See `check_arguments`.

    Returns:
      Name -> value of every argument.

    Raises:
      UserError: An argument is unknown or missing.
    """
    check_arguments(signature, given, field=field, owner=owner)
    resolved = dict(given)
    for name, parameter in signature.parameters.items():
        value = given.get(name, parameter.default)
        wants_float = parameter.annotation is float or isinstance(parameter.default, float)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        resolved[name] = float(value) if wants_float and is_int else value
    return resolved
