"""Schedules: pure functions of the epoch, for the learning rate and for the weights of losses."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.errors import UserError, lookup, nearest


def step(epoch, *, milestones, factor):
    """Multiplies by `factor` after each milestone: with (150, 180, 210) epochs 151, 181 and 211 are the first lower."""
    passed = sum((epoch >= milestone).astype(int) for milestone in milestones)
    return jnp.asarray(factor, float) ** passed


def step_early(epoch, *, milestones, factor, ramp=0):
    """`step` by whole epochs and one of them too soon, with a warm-up of `ramp` epochs that so begins at 2 / ramp.

    For recipes whose code advances its scheduler at the start of an epoch (Guo et al., 2024).
    """
    reached = jnp.floor(epoch) + 1
    return step(reached, milestones=milestones, factor=factor) * jnp.minimum((reached + 1) / max(ramp, 1), 1.0)


def cosine(epoch, *, epochs):
    """Half a cosine from 1 to 0 over the whole run (Loshchilov & Hutter, 2017)."""
    return 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs))


def constant(epoch):
    """Stays at 1."""
    return jnp.ones_like(epoch)


# Learning rate: name -> (epoch, the fields it asks for) -> factor of the base rate; `epoch` counts in fractions.
SCHEDULES = {"step": step, "step_early": step_early, "cosine": cosine, "constant": constant}


def learning_rate(base, epoch, schedule: Mapping, epochs: int):
    """Returns base rate x shape at an epoch.

    Args:
      base: [] the base rate.
      epoch: [] float, epochs that have passed, fractions of an epoch included.
      schedule: `config.schedule`, numbers traced or not.
      epochs: of the whole run.
    """
    function = lookup(SCHEDULES, schedule["name"], "schedule")
    fields = {"epochs": epochs, "milestones": schedule["milestones"], "factor": schedule["factor"], **schedule["args"]}
    rate = base * function(epoch, **_asked_for(function, fields))
    if schedule["warmup_epochs"]:
        rate = rate * jnp.minimum(epoch / schedule["warmup_epochs"], 1.0)
    return rate


def _asked_for(function: Callable, fields: Mapping) -> dict[str, Any]:
    return {name: fields[name] for name in list(inspect.signature(function).parameters)[1:] if name in fields}


def warmup(epoch, *, value: float, epochs: int):
    """Rises linearly to `value`, which epoch number `epochs` (counted from 1) is the first to reach."""
    return value * jnp.minimum((epoch + 1) / epochs, 1.0)


def linear(epoch, *, start: float, end: float, first: int = 0, last: int):
    """Goes from `start` at epoch `first` to `end` at epoch `last` (counted from 0) and is flat outside."""
    return start + (end - start) * _share(epoch, first, last)


def cosine_between(epoch, *, start: float, end: float, first: int = 0, last: int):
    """Goes from `start` to `end` along half a cosine between epochs `first` and `last` and is flat outside."""
    return start + (end - start) * 0.5 * (1 - jnp.cos(jnp.pi * _share(epoch, first, last)))


def constant_weight(epoch, *, value: float):
    """Stays at `value`."""
    return jnp.full(jnp.shape(epoch), value)


def _share(epoch, first: int, last: int):
    return jnp.clip((epoch - first) / max(last - first, 1), 0.0, 1.0)


# Weight of a loss: {'schedule': name, ...} -> (epoch, fields) -> weight; `epoch` is whole, counted from 0.
WEIGHT_SCHEDULES = {"constant": constant_weight, "warmup": warmup, "linear": linear, "cosine": cosine_between}


def weight(value: float | Mapping, epoch):
    """Returns a loss's weight at an epoch, from a number or from a mapping that names a schedule."""
    if not isinstance(value, Mapping):
        return value
    fields = {name: field for name, field in value.items() if name != "schedule"}
    # As a float first: an int32 divided by an int is float32 even where all else is float64.
    return lookup(WEIGHT_SCHEDULES, value["schedule"], "weight schedule")(jnp.asarray(epoch, float), **fields)


def resolve_weight(value: Any, where: str) -> float | dict:
    """Checks a weight from the config and makes its numbers what the schedule's signature says.

    Raises:
      UserError: neither a number nor a mapping with a known schedule and just the fields it takes.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, Mapping) or "schedule" not in value:
        raise UserError(
            f"{where} must be a number or {{'schedule': 'warmup', 'value': 1.0, 'epochs': 20}}, not {value!r}."
        )
    function = lookup(WEIGHT_SCHEDULES, value["schedule"], "weight schedule")
    fields = {name: field for name, field in value.items() if name != "schedule"}
    return {"schedule": value["schedule"], **resolve_arguments(function, fields, where, skip=("epoch",))}


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
