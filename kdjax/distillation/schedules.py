"""Schedules of the weights of losses: pure functions of the epoch."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.arguments import resolve_arguments
from kdjax.errors import UserError, lookup


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
