"""Matches the arguments that a user gave with a function's signature, and names the nearest right ones."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.errors import UserError, nearest


def resolve_arguments(function: Callable, given: Mapping, where: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Matches a config's fields with a function's parameters, fills in the defaults and makes floats of floats.

    Args:
      function: its signature is the schema.
      given: field -> value.
      where: the field's path in the config, for messages.
      skip: parameters that the program passes itself.

    Raises:
      UserError: a field that the function does not take (with the nearest one), or one that it needs and lacks.
    """
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in skip}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for name in given:
        if name not in parameters and not open_ended:
            raise UserError(f"{where} takes no '{name}'.{nearest(name, parameters)}")
    resolved = dict(given)
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty:
            raise UserError(f"{where} needs '{name}'; --{where}.{name}=VALUE works once the config file has the field.")
        value = given.get(name, parameter.default)
        wants_float = parameter.annotation is float or isinstance(parameter.default, float)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        resolved[name] = float(value) if wants_float and is_int else value
    return resolved
