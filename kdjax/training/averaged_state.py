"""The state of a run whose weights are replaced by their average, with BatchNorm's statistics estimated again."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

from kdjax.training import forward, parallel
from kdjax.training.batch_loader import BatchLoader
from kdjax.training.evaluation import resident
from kdjax.training.plan import Plan
from kdjax.training.spec import Fixed, Spec
from kdjax.training.state import TrainState
from kdjax.training.steps import make_context
from kdjax.types import Batch, Device

PROBE = 1024.0  # running statistics from which the momentum of each layer is found


def averaged(plan: Plan, state: TrainState, loader: BatchLoader) -> TrainState:
    """Returns the state with the averaged weights and the batch statistics that belong to them.

    The running statistics become the plain means of the statistics of all batches of the last epoch, in its own views.

    Args:
      plan: Plan of a run that has an average.
      state: Its state after the last update, on the host.
      loader: The loader of its batches.
    """
    state = dataclasses.replace(state, params=state.average)
    if not jax.tree.leaves(state.batch_stats):
        return state
    spec = plan.spec_at(plan.epochs - 1)._replace(teachers=())
    after = functools.partial(_statistics_after, plan, spec, state, loader)
    first, zero = next(after(PROBE)), 0.0
    means = None
    for count, found in enumerate(after(zero), 1):
        if means is None:
            momentum = jax.tree.map(lambda a, b: (a - b) / PROBE, first, found)
            means = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
        else:
            means = jax.tree.map(lambda mean, leaf, n=count: mean + (leaf - mean) / n, means, found)
    return dataclasses.replace(state, batch_stats=jax.tree.map(_undo, means, momentum, state.batch_stats))


def _undo(mean: np.ndarray, momentum: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Returns batch statistics from the mean of (1 - momentum) times them; those of layers that do not move stay."""
    moves = momentum < 1 - 1e-6
    return np.where(moves, mean / np.where(moves, 1 - momentum, 1.0), old).astype(old.dtype)


def _statistics_after(plan: Plan, spec: Spec, state: TrainState, loader: BatchLoader, value: float) -> Iterator[Any]:
    """Yields, for each batch of the last epoch, the running statistics after it where they were a value before it."""
    blank = jax.tree.map(lambda leaf: np.full_like(leaf, value), state.batch_stats)
    placed, numbers = parallel.replicate((dataclasses.replace(state, batch_stats=blank), plan.numbers), plan.devices)
    fixed = Fixed({}, resident(plan.dataset, plan.devices), numbers, {})
    run = _compiled(spec, plan.devices)
    for step in range(spec.steps_per_epoch):
        yield jax.device_get(run(placed, fixed, loader.batches(plan.epochs - 1, step, 1)))


@functools.lru_cache(maxsize=16)
def _compiled(spec: Spec, devices: tuple[Device, ...]) -> Callable[..., Any]:
    return parallel.data_parallel(functools.partial(_statistics, spec=spec, axis_name=parallel.AXIS), devices)


def _statistics(state: TrainState, fixed: Fixed, batches: Batch, *, spec: Spec, axis_name: str) -> Any:
    """Returns the running statistics after one batch, in training mode, as on every device."""
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    context = make_context(fixed.numbers, batch, spec, axis_name)
    images = forward.make_views(fixed, context).images[spec.view]
    return lax.pmean(forward.run_student(state.params, state, images, context)[1], axis_name)
