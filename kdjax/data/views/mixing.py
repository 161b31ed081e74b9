"""Mixup and cutmix: who is mixed with whom, and how much of each is seen, from (seed, epoch, example) alone."""

import functools

import jax.numpy as jnp
import numpy as np

from kdjax import randomness
from kdjax.types import Array

LEVELS = 4096  # how many parts a Beta distribution is drawn from


@functools.lru_cache(maxsize=16)
def shares(alpha: float) -> np.ndarray:
    """Returns [LEVELS] float32: the middles of equally likely parts of Beta(alpha, alpha), rising."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, (np.arange(LEVELS) + 0.5) / LEVELS).astype(np.float32)


def mix(own: Array, other: Array, example: Array, epoch: Array, seed: Array, *, mix: str, alpha: float):
    """Returns mixed images and the part of each that is the example's own.

    Args:
      own, other: [batch, height, width, channels] float.
      example: [batch] of `own`, in the full set.
      epoch, seed: [] integers.
      mix: 'mixup' (Zhang et al. 2018): a weighted mean; 'cutmix' (Yun et al. 2019): a box of the other image.
      alpha: the part is drawn from Beta(alpha, alpha), for every example anew.

    Returns:
      images like `own`, and kept [batch] in [0, 1].
    """
    words = randomness.bits(example, epoch, seed, "mix", 3, jnp)
    level = words[:, 0] >> 20
    if mix == "mixup":
        kept = jnp.asarray(shares(alpha))[level].astype(own.dtype)
        part = kept[:, None, None, None]
        return part * own + (1 - part) * other, kept
    covered = _box(words[:, 1:], level, own.shape[1:3], alpha)
    kept = 1 - jnp.mean(covered, axis=(1, 2), dtype=own.dtype)
    return jnp.where(covered[..., None], other, own), kept


def _box(words: Array, level: Array, sides: tuple[int, int], alpha: float) -> Array:
    """[batch, height, width] bool: a box of about 1 - share of the area, centred anywhere and cut off at the edges."""
    covered = True
    for axis, total in enumerate(sides):
        lengths = (total * np.sqrt(1 - shares(alpha).astype(np.float64))).astype(np.int32)
        half = jnp.asarray(lengths // 2)[level][:, None]
        centre = (words[:, axis] % total).astype(jnp.int32)[:, None]
        at = jnp.arange(total, dtype=jnp.int32)
        covered &= jnp.expand_dims((at >= centre - half) & (at < centre + half), 2 - axis)
    return covered
