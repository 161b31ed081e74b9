"""Metrics as (sum, count) pairs that merge exactly, and what last and best mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, Metrics

NEVER = np.iinfo(np.int32).max


class Sums(NamedTuple):
    """What a stretch of steps adds up to.

    Attributes:
      metrics: name -> (sum, count).
      first_bad_step: [] int32, the first step whose loss was not finite, `NEVER` if there was none.
    """

    metrics: Metrics
    first_bad_step: Array


def merge(a: Sums, b: Sums) -> Sums:
    """Adds two stretches."""
    return Sums(jax.tree.map(jnp.add, a.metrics, b.metrics), jnp.minimum(a.first_bad_step, b.first_bad_step))


def zeros(names: tuple[str, ...]) -> Sums:
    """An empty stretch, as host arrays."""
    zero = np.zeros((), jax.dtypes.canonicalize_dtype(float))
    return Sums({name: (zero, zero) for name in names}, np.array(NEVER, np.int32))


def means(metrics: Metrics) -> dict[str, float]:
    """Turns fetched sums into plain means; an empty count gives 0."""
    return {name: float(total) / max(float(count), 1.0) for name, (total, count) in metrics.items()}


def accuracy(logits, labels) -> Array:
    """[batch] 1.0 where the largest logit is the label's."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)


def top5(logits, labels) -> Array:
    """[batch] 1.0 where fewer than five logits exceed the label's."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return (jnp.sum(logits > own, axis=-1) < 5).astype(logits.dtype)
