"""Drop-path (stochastic depth): leaves whole branches of a network out, example by example.

Reference: Huang, Sun, Liu, Sedra & Weinberger, 2016, "Deep Networks with Stochastic Depth",
https://arxiv.org/abs/1603.09382
"""

import jax
import jax.numpy as jnp

from kdjax.types import Array


def drop_path(x: Array, keys: Array, draw: int, rate: float) -> Array:
    """Sets a branch to 0 for a share `rate` of the examples, and divides it by 1 - rate for the others.

    Args:
      x: Output of the branch [batch, ...], before it is added to the shortcut.
      keys: Random keys [batch], one for each example.
      draw: Number of the branch in the network; each branch draws independently.
      rate: Probability that an example's branch is left out, in [0, 1).

    Returns:
      Output of the branch [batch, ...], with the same expectation as `x`.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, draw), 1 - rate))(keys)
    factor = jnp.where(keep, 1 / (1 - rate), 0.0).astype(x.dtype)
    return x * factor.reshape(-1, *[1] * (x.ndim - 1))
