"""Mixup and cutmix: mixes the images of two examples, as a function of (seed, epoch, example)."""

import functools

import jax.numpy as jnp
import numpy as np

from kdjax import randomness
from kdjax.types import Array

LEVELS = 4096  # number of equally likely values that stand for a Beta distribution


@functools.lru_cache(maxsize=16)
def shares(alpha: float) -> np.ndarray:
    """Returns the (i + 1/2) / LEVELS quantiles of Beta(alpha, alpha), float32 [LEVELS]."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, (np.arange(LEVELS) + 0.5) / LEVELS).astype(np.float32)


def mix(own: Array, other: Array, example: Array, epoch: Array, seed: Array, *, mix: str, alpha: float):
    """Returns mixed images and the fraction of each that is its own.

    Args:
      own: Images of the examples, float [batch, height, width, channels].
      other: Images of their partners, float [batch, height, width, channels].
      example: Row of each example in the full data set, [batch].
      epoch: Number of the pass over the data, integer [] or [batch].
      seed: Seed of the run, integer [].
      mix: 'mixup' for a weighted mean (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"), or 'cutmix' for
        a box of the other image (Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features").
      alpha: Parameter of the distribution Beta(alpha, alpha), from which each example draws its fraction.

    Returns:
      Images [batch, height, width, channels], and the fractions kept [batch] in [0, 1].
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
    """Returns which pixels are in a box of about 1 - share of the area, bool [batch, height, width].

    The centre of the box is anywhere in the image, and the box is cut off at the edges.
    """
    covered = True
    for axis, total in enumerate(sides):
        lengths = (total * np.sqrt(1 - shares(alpha).astype(np.float64))).astype(np.int32)
        half = jnp.asarray(lengths // 2)[level][:, None]
        centre = (words[:, axis] % total).astype(jnp.int32)[:, None]
        at = jnp.arange(total, dtype=jnp.int32)
        covered &= jnp.expand_dims((at >= centre - half) & (at < centre + half), 2 - axis)
    return covered
