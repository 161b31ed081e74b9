"""Totals that add over batches and devices, and the means they become.

A statistic is a mapping of name -> (sum, count), each [] or [classes], or a table of counts. A device adds in the
precision of its arrays, the host in float64 and int64, so no mean of means is ever taken.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PART = 4096  # examples that are measured at once


def in_parts(measure: Callable, *arguments: Any) -> Any:
    """Totals of whole arrays on the host, part by part: what a measure makes in between does not grow with the set.

    Args:
      measure: arguments -> totals that add over batches.
      *arguments: arrays [examples, ...]; numbers and None, which go to every part.

    Returns:
      As `add`.

    Raises:
      ValueError: of the measure, to which arrays of different lengths go as they are.
    """
    lengths = {np.shape(argument)[0] for argument in arguments if np.ndim(argument)}
    if len(lengths) != 1:
        return add(measure(*arguments))
    starts = range(0, max(lengths.pop(), 1), PART)  # once where there is no example: what adds nothing has its shapes
    return add(*(measure(*(a[i : i + PART] if np.ndim(a) else a for a in arguments)) for i in starts))


def add(*totals: Any) -> Any:
    """Adds the totals of several batches on the host, in float64 and int64.

    Args:
      *totals: at least one pytree, all alike in structure and shapes, such as what any `*_sums` of this room returns.

    Returns:
      Their sum, leaf by leaf, as NumPy values.

    Raises:
      ValueError: none is given, or their structures or shapes differ.
    """
    if not totals:
        raise ValueError("add needs the totals of one batch at least.")
    return jax.tree.map(_add, *totals)


def _add(*parts: Any) -> Any:
    parts = [np.asarray(part) for part in parts]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"totals of different shapes do not add: {[list(part.shape) for part in parts]}.")
    wide = np.float64 if np.issubdtype(parts[0].dtype, np.floating) else np.int64
    return np.sum([part.astype(wide) for part in parts], axis=0)


def means(totals: dict) -> dict:
    """Returns name -> sum / count in float64, of the shape of the sums; NaN where nothing was counted.

    Args:
      totals: name -> (sum, count).
    """
    return {name: divide(total, count) for name, (total, count) in totals.items()}


def overall(totals: dict) -> dict:
    """Returns totals by class as totals over all classes: name -> (sum, count), each [].

    Args:
      totals: name -> (sum, count), each [] or [classes].
    """
    return {
        name: (np.sum(np.asarray(total, np.float64)), np.sum(np.asarray(count, np.int64)))
        for name, (total, count) in totals.items()
    }


def divide(total: Any, count: Any) -> Any:
    """Returns total / count in float64, NaN where the count is 0; a float for scalars."""
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    quotient = np.full(np.broadcast(total, count).shape, np.nan)
    np.divide(total, count, out=quotient, where=count != 0)
    return float(quotient) if quotient.ndim == 0 else quotient


@functools.partial(jax.jit, static_argnames="groups")
def totals(values: dict[str, Array], mask: Array, group: Array | None = None, *, groups: int = 0) -> dict:
    """Returns name -> (sum, count) of the unmasked values, each [], or [groups] if every example has a group.

    A compare and a sum in place of a scatter: float scatters add in no fixed order on a GPU.

    Args:
      values: name -> [batch]; masked ones may be anything, NaN too.
      mask: [batch] bool.
      group: [batch] integers, or None.
      groups: how many there are.
    """
    if group is not None:
        mask = mask[:, None] & (group[:, None] == jnp.arange(groups))
        values = {name: value[:, None] for name, value in values.items()}
    count = jnp.sum(mask, axis=0)
    return {name: (jnp.sum(jnp.where(mask, value, 0), axis=0), count) for name, value in values.items()}
