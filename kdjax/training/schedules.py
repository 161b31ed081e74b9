"""Learning-rate schedules: pure functions of the epoch, in a visible table."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax.arguments import hashable, signature_of
from kdjax.errors import UserError, lookup, nearest
from kdjax.types import Array


def step(epoch: Array, *, milestones: tuple[int, ...], factor: Array) -> Array:
    """Multiplies by `factor` after each milestone: with (150, 180, 210) epochs 151, 181 and 211 are the first lower."""
    passed = sum((epoch >= milestone).astype(int) for milestone in milestones)
    return jnp.asarray(factor, float) ** passed


def step_early(epoch: Array, *, milestones: tuple[int, ...], factor: Array, ramp: int = 0) -> Array:
    """`step`, one epoch early and constant within an epoch, after a warm-up of `ramp` epochs that begins at 2 / ramp.

    For recipes whose code advances its scheduler at the start of an epoch (Guo et al., 2024).
    """
    reached = jnp.floor(epoch) + 1
    return step(reached, milestones=milestones, factor=factor) * jnp.minimum((reached + 1) / max(ramp, 1), 1.0)


def cosine(epoch: Array, *, epochs: int) -> Array:
    """Half a cosine from 1 to 0 over the whole run (Loshchilov & Hutter, "SGDR", ICLR 2017)."""
    return 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs))


def constant(epoch: Array) -> Array:
    """Stays at 1."""
    return jnp.ones_like(epoch)


# Learning rate: name -> (epoch, the fields it asks for) -> factor of the base rate. The epoch counts in fractions.
SCHEDULES = {"step": step, "step_early": step_early, "cosine": cosine, "constant": constant}


class Schedule(NamedTuple):
    """A schedule, looked up once; hashable.

    Attributes:
      function: A row of SCHEDULES or a function of the user's own.
      parameters: Names of the fields that it asks for.
    """

    function: Callable[..., Array]
    parameters: tuple[str, ...]


def find_schedule(name: str, args: Collection[str] = ()) -> Schedule:
    """Looks a schedule up.

    Args:
      name: A row of SCHEDULES or 'package.module:attribute'.
      args: Names in config.schedule.args.

    Raises:
      UserError: There is no such schedule, or it does not take one of the arguments.
    """
    function = hashable(lookup(SCHEDULES, name, "schedule"))
    takes = signature_of(function, leading=1).parameters
    for arg in args:
        if arg not in takes:
            raise UserError(f"config.schedule.args: schedule '{name}' takes no '{arg}'.{nearest(arg, takes)}")
    return Schedule(function, tuple(takes))


def learning_rate(base: Array, epoch: Array, config: Mapping[str, Any], epochs: int, schedule: Schedule) -> Array:
    """Returns the learning rate at an epoch: the base rate times the schedule's factor.

    Args:
      base: [] base rate.
      epoch: [] float, the epochs that have passed, fractions of an epoch included.
      config: `config.schedule`, numbers traced or not.
      epochs: Epochs of the whole run.
      schedule: The schedule that the config names.
    """
    fields = {"epochs": epochs, "milestones": config["milestones"], "factor": config["factor"], **config["args"]}
    rate = base * schedule.function(epoch, **{name: fields[name] for name in schedule.parameters if name in fields})
    if config["warmup_epochs"]:
        rate = rate * jnp.minimum(epoch / config["warmup_epochs"], 1.0)
    return rate
