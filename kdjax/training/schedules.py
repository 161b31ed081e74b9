"""Learning-rate schedules: pure functions of the epoch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.errors import lookup


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
