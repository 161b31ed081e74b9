"""Random bits that are a function of (seed, epoch, example) and of what they are for, alike on host and device."""

from typing import Any

import numpy as np

# What bits are for -> a word that parts them from all others.
DOMAINS = {
    name: 0x76696577 + i
    for i, name in enumerate(("crop", "resized", "rotate", "jitter", "policy", "hole", "mix", "partner", "teacher"))
}


def bits(example: Any, epoch: Any, seed: Any, domain: str, count: int, xp: Any = np) -> Any:
    """Returns [batch, count] uint32 random bits.

    Args:
      example: [batch] integers, indices in the full set.
      epoch: [] or [batch] integers in [0, 2^32), traced or not.
      seed: [] integer in [0, 2^32), traced or not.
      domain: of DOMAINS, static.
      count: static.
      xp: numpy, or jax.numpy on the device; both give the same bits.
    """
    # Arrays of one element, since NumPy warns when scalars wrap around.
    seed, epoch = (xp.asarray(value, dtype=xp.uint32).reshape(-1) for value in (seed, epoch))
    example = xp.asarray(example, dtype=xp.uint32)
    word = xp.asarray([DOMAINS[domain]], dtype=xp.uint32)
    first = mix(mix(mix(seed ^ word, xp) + epoch, xp) + example, xp)
    second = mix(mix(mix(seed + word, xp) ^ epoch, xp) ^ example, xp)
    column = mix(xp.arange(1, count + 1, dtype=xp.uint32), xp)
    # Two rounds with two words, as for the order of an epoch: with one, equal sums would give equal bits.
    return mix(mix(first[:, None] + column, xp) ^ second[:, None], xp)


def unit(words: Any, xp: Any = np) -> Any:
    """Returns float32 in [0, 1), multiples of 2^-24, of uint32 words of any shape."""
    return (words >> xp.uint32(8)).astype(xp.float32) * xp.float32(2**-24)


def partners(train: Any, example: Any, epoch: Any, seed: Any, xp: Any = np) -> Any:
    """Returns whom each example is mixed with: any row of the training split, whatever batch or device it is in.

    Args:
      train: [size] int32 rows of the training split.
      example: [batch] indices in the full set.
      epoch: [] integer in [0, 2^32), traced or not.
      seed: [] integer in [0, 2^32), traced or not.
      xp: numpy, or jax.numpy on the device; both give the same bits, so that a stream can read partners as well.

    Returns:
      [batch] int32 of `train`, with replacement.
    """
    words = bits(example, epoch, seed, "partner", 1, xp)[:, 0]
    return xp.asarray(train)[(words % xp.uint32(len(train))).astype(xp.int32)].astype(xp.int32)


def mix(x: Any, xp: Any) -> Any:
    """Scrambles uint32 by a bijection, the finalizer of MurmurHash3 (Appleby, 2011)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> xp.uint32(shift))) * xp.uint32(factor)
    return x ^ (x >> xp.uint32(16))
