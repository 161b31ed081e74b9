"""Totals that add over batches and devices, and the means that they become.

A statistic is a mapping of name -> (sum, count), each [] or [classes], or a table of counts. Devices add in the
precision of their arrays, the host adds in float64 and int64. Only the final totals are divided, so that a batch counts
by its size.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Totals = Mapping[str, tuple[ArrayLike, ArrayLike]]  # name -> (sum, count)

PART = 4096  # number of examples that are measured at once


def in_parts(measure: Callable, *arguments: Any) -> Any:
    """Returns a measure's totals of whole arrays, computed over slices of `PART` examples.

    The measure's intermediate arrays then do not grow with the data set.

    Args:
      measure: Function of the arguments that returns totals which add over batches.
      *arguments: Arrays [examples, ...], which are sliced; numbers and None, which are passed to every slice.

    Returns:
      Totals as NumPy values, see `add`.

    Raises:
      ValueError: The measure refuses its arguments. Arrays of different lengths are passed to it as they are, so that
        its own message names them.
    """
    lengths = {np.shape(argument)[0] for argument in arguments if np.ndim(argument)}
    if len(lengths) != 1:
        return add(measure(*arguments))
    # An empty set is measured once: its totals are zeros, but they have the right names and shapes.
    starts = range(0, max(lengths.pop(), 1), PART)
    return add(*(measure(*(a[i : i + PART] if np.ndim(a) else a for a in arguments)) for i in starts))


def add(*totals: Any) -> Any:
    """Adds the totals of several batches on the host, in float64 and int64.

    Args:
      *totals: Pytrees of totals, at least one, all of the same structure and shapes, such as any `*_sums` returns.

    Returns:
      Their sum, leaf by leaf, as NumPy values.

    Raises:
      ValueError: No totals are given, or their structures or shapes differ.
    """
    if not totals:
        raise ValueError("add needs the totals of at least one batch.")
    return jax.tree.map(_add, *totals)


def _add(*leaves: ArrayLike) -> np.ndarray:
    parts = [np.asarray(leaf) for leaf in leaves]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"totals of different shapes do not add: {[list(part.shape) for part in parts]}.")
    wide = np.float64 if np.issubdtype(parts[0].dtype, np.floating) else np.int64
    return np.sum([part.astype(wide) for part in parts], axis=0)


def means(totals: Totals) -> dict[str, Any]:
    """Returns the mean of every total, sum / count in float64; NaN where nothing was counted.

    Args:
      totals: Mapping of name -> (sum, count), each [] or [classes].

    Returns:
      Mapping of name -> mean: a float, or an array [classes].
    """
    return {name: divide(total, count) for name, (total, count) in totals.items()}


def overall(totals: Totals) -> dict[str, tuple[np.float64, np.int64]]:
    """Returns totals by class pooled over all classes.

    Args:
      totals: Mapping of name -> (sum, count), each [] or [classes].

    Returns:
      Mapping of name -> (sum, count), each [].
    """
    return {
        name: (np.sum(np.asarray(total, np.float64)), np.sum(np.asarray(count, np.int64)))
        for name, (total, count) in totals.items()
    }


def divide(total: ArrayLike, count: ArrayLike) -> Any:
    """Returns total / count in float64, NaN where the count is 0: a float for scalars, else an array."""
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    quotient = np.full(np.broadcast(total, count).shape, np.nan)
    np.divide(total, count, out=quotient, where=count != 0)
    return float(quotient) if quotient.ndim == 0 else quotient


@functools.partial(jax.jit, static_argnames="groups")
def totals(
    values: dict[str, Array], mask: Array, group: Array | None = None, *, groups: int = 0
) -> dict[str, tuple[Array, Array]]:
    """Returns the totals of the unmasked values, over all examples or by group.

    Groups are summed by comparing and adding, not by a scatter: a GPU adds the floats of a scatter in no fixed order.

    Args:
      values: Mapping of name -> values [batch]. Masked values may be anything, also NaN.
      mask: Boolean mask [batch].
      group: Integer group of each example [batch], or None.
      groups: Number of groups.

    Returns:
      Mapping of name -> (sum, count), each [], or [groups] if groups are given.
    """
    if group is not None:
        mask = mask[:, None] & (group[:, None] == jnp.arange(groups))
        values = {name: value[:, None] for name, value in values.items()}
    count = jnp.sum(mask, axis=0)
    return {name: (jnp.sum(jnp.where(mask, value, 0), axis=0), count) for name, value in values.items()}
