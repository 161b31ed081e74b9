"""The order of examples: a hash of (seed, epoch, position), the same bits on host and device."""

from typing import Any

import numpy as np

from kdjax.errors import UserError

# First words of the two hashes of (seed, epoch) that key an order; they part these bits from any other use of a seed.
DOMAINS = (0x6B646A61, 0x786F7264)


def epoch_order(seed: Any, epoch: Any, n: int, xp: Any = np) -> Any:
    """Returns a permutation of range(n), the only source of order.

    Args:
      seed: [] integer in [0, 2^32), traced or not.
      epoch: [] integer in [0, 2^32), traced or not.
      n: how many examples, static, below 2^31.
      xp: numpy, or jax.numpy on the device.

    Returns:
      [n] int32, where both modules give the same bits.
    """
    # Arrays of one element, since NumPy warns when scalars wrap around.
    seed, epoch = (xp.asarray(value, dtype=xp.uint32).reshape(1) for value in (seed, epoch))
    first, second = (_mix(_mix(seed ^ xp.uint32(word), xp) + epoch, xp) for word in DOMAINS)
    # Two rounds with independent words: with one, nearby words would give orders that are shifts of each other.
    keys = _mix(_mix(xp.arange(n, dtype=xp.uint32) + first, xp) ^ second, xp)
    return xp.argsort(keys, stable=True).astype(xp.int32)


def _mix(x: Any, xp: Any) -> Any:
    """Scrambles uint32 by a bijection, the finalizer of MurmurHash3 (Appleby, 2011)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> xp.uint32(shift))) * xp.uint32(factor)
    return x ^ (x >> xp.uint32(16))


def train_batches(rows: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Returns an epoch's batches in its order, without the last partial one.

    Args:
      rows: [size] of the training split.
      seed: of the run, in [0, 2^32).
      epoch: from 0.
      batch_size: over all devices.

    Returns:
      [steps, batch_size] int32 rows, steps = size // batch_size.

    Raises:
      UserError: there are fewer rows than a batch takes.
    """
    steps = len(rows) // batch_size
    if not steps:
        raise UserError(f"config.batch_size = {batch_size} is more than the {len(rows)} training examples; lower it.")
    order = epoch_order(seed, epoch, len(rows))[: steps * batch_size]
    return np.asarray(rows, np.int32)[order].reshape(steps, batch_size)


def eval_batches(rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns batches that hold every row once, the last one filled up with rows that the mask hides.

    Args:
      rows: [size] of a split, at least one.
      batch_size: over all devices.

    Returns:
      [steps, batch_size] int32 rows, and a bool mask of the same shape, False for filling.
    """
    steps = -(-len(rows) // batch_size)
    index = np.full(steps * batch_size, rows[0], np.int32)
    index[: len(rows)] = rows
    mask = np.arange(len(index)) < len(rows)
    return index.reshape(steps, batch_size), mask.reshape(steps, batch_size)
