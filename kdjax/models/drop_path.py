"""Drop-path (stochastic depth, Huang et al. 2016): whole branches left out, example by example."""

import jax
import jax.numpy as jnp

from kdjax.types import Array


def drop_path(x: Array, keys: Array, draw: int, rate: float) -> Array:
    """Leaves a branch out for a share `rate` of the examples and divides it by 1 - rate for the others.

    Args:
      x: [batch, ...] the branch before it is added.
      keys: [batch] random keys, one an example.
      draw: number of this branch in the network; every one draws for itself.
      rate: in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, draw), 1 - rate))(keys)
    factor = jnp.where(keep, 1 / (1 - rate), 0.0).astype(x.dtype)
    return x * factor.reshape(-1, *[1] * (x.ndim - 1))
