"""Schedules of the weights of losses: pure functions of the epoch, in a visible table."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.arguments import hashable, resolve_arguments, signature_of
from kdjax.errors import UserError, lookup
from kdjax.types import Array

LARGEST = 1e38  # weight; float32 holds hardly more


def warmup(epoch: Array, *, value: float, epochs: int) -> Array:
    """Rises linearly to `value`, which is first reached in epoch number `epochs` (counted from 1)."""
    return value * jnp.minimum((epoch + 1) / epochs, 1.0)


def linear(epoch: Array, *, start: float, end: float, first: int = 0, last: int) -> Array:
    """Goes linearly from `start` at epoch `first` to `end` at epoch `last` (counted from 0); constant outside."""
    return start + (end - start) * _share(epoch, first, last)


def cosine_between(epoch: Array, *, start: float, end: float, first: int = 0, last: int) -> Array:
    """Goes from `start` to `end` along half a cosine between epochs `first` and `last`; constant outside."""
    return start + (end - start) * 0.5 * (1 - jnp.cos(jnp.pi * _share(epoch, first, last)))


def constant_weight(epoch: Array, *, value: float) -> Array:
    """Stays at `value`."""
    return jnp.full(jnp.shape(epoch), value)


def _share(epoch: Array, first: int, last: int) -> Array:
    return jnp.clip((epoch - first) / max(last - first, 1), 0.0, 1.0)


# The weight of a loss may be {'schedule': name, ...}: name -> (epoch, fields) -> weight. The epoch is a whole number,
# counted from 0.
WEIGHT_SCHEDULES = {"constant": constant_weight, "warmup": warmup, "linear": linear, "cosine": cosine_between}


def schedule_of(value: Any) -> Callable[..., Array] | None:
    """Returns the function that a weight of the config names, or None for a weight that is a number.

    Raises:
      UserError: The schedule is unknown.
    """
    if not isinstance(value, Mapping):
        return None
    return hashable(lookup(WEIGHT_SCHEDULES, value["schedule"], "weight schedule"))


def weight(value: Any, schedule: Callable[..., Array] | None, epoch: Array) -> Array:
    """Returns the weight of a loss at an epoch.

    Args:
      value: The config's weight, a number or a mapping with the fields of its schedule; numbers may be traced.
      schedule: The function that `schedule_of` returned for it.
      epoch: [] whole number, counted from 0.
    """
    if schedule is None:
        return value
    fields = {name: field for name, field in value.items() if name != "schedule"}
    # As a float first: an int32 divided by an int is float32 even where all else is float64.
    return schedule(jnp.asarray(epoch, float), **fields)


def resolve_weight(value: Any, field: str) -> float | dict[str, Any]:
    """Checks a weight from the config and converts its numbers to the types in the schedule's signature.

    Args:
      value: A number, or a mapping with 'schedule' and the schedule's fields.
      field: Where it stands in the config, for messages.

    Raises:
      UserError: The weight is neither a number nor a mapping with a known schedule and exactly the fields it takes.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    if not isinstance(value, Mapping) or "schedule" not in value:
        raise UserError(
            f"{field} must be a number of at most 1e38, or {{'schedule': 'warmup', 'value': 1.0, 'epochs': 20}}, "
            f"not {value!r}."
        )
    name = value["schedule"]
    function = lookup(WEIGHT_SCHEDULES, name, "weight schedule")
    fields = {name: field for name, field in value.items() if name != "schedule"}
    takes = signature_of(function, leading=1)
    return {"schedule": name, **resolve_arguments(takes, fields, field=field, owner=f"weight schedule '{name}'")}
