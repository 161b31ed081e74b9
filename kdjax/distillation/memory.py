"""A memory of embeddings on the device, and negatives drawn for an example from those of other classes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

from kdjax.losses._maps import normalized

LOUD_BYTES = 256 * 2**20  # a memory from here on is announced before it is allocated


def plan_bytes(examples: int, dim: int, dtype: str) -> int:
    """Returns the bytes of two memories [examples, dim] and of the tables that negatives are drawn by."""
    return 2 * examples * dim * jnp.dtype(dtype).itemsize + 3 * examples * 4


def first_bank(seed: int, examples: int, dim: int, dtype: str) -> np.ndarray:
    """Draws a memory [examples, dim] uniformly within ±1 / √(dim / 3), by Philox(seed)."""
    bound = 1 / math.sqrt(dim / 3)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0xC8D], np.uint64)))
    exact = jax.dtypes.canonicalize_dtype(np.float64) if dtype == "float32" else jnp.dtype(dtype)
    return generator.uniform(-bound, bound, (examples, dim)).astype(exact)


def announce(examples: int, dim: int, dtype: str) -> None:
    """Says how large a memory is going to be, before it is allocated."""
    size = plan_bytes(examples, dim, dtype)
    say = logging.warning if size >= LOUD_BYTES else logging.info
    say("a memory of 2 x %d x %d in %s takes %.0f MB on every device", examples, dim, dtype, size / 2**20)


def class_table(labels: np.ndarray, rows: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Makes what `draw_negatives` and the memory are indexed by, on the host.

    Args:
      labels: [all rows of the data set] int.
      rows: [examples] of them that are remembered, the training rows.
      num_classes: of the labels.

    Returns:
      slot [all rows], a row's place in the memory, 0 for one that has none; order [examples], places sorted by class;
      starts [classes + 1], where a class begins in `order`; all int32.
    """
    slot = np.zeros(len(labels), np.int32)
    slot[rows] = np.arange(len(rows), dtype=np.int32)
    classes = np.asarray(labels)[rows]
    order = np.argsort(classes, kind="stable").astype(np.int32)
    starts = np.searchsorted(classes[order], np.arange(num_classes + 1)).astype(np.int32)
    return {"slot": slot, "order": order, "starts": starts}


def draw_negatives(seed: Any, epoch: Any, index: Array, labels: Array, table: dict, count: int) -> Array:
    """Draws places of other classes than an example's own, without replacement as long as there are enough.

    A keyed bijection of the places of other classes is evaluated at 0, 1, ..., count - 1, so that the cost does not
    depend on how many there are.

    Args:
      seed: [] of the run, traced or not.
      epoch: [] int.
      index: [batch] the examples, which with seed and epoch alone decide.
      labels: [batch] int, their classes.
      table: of `class_table`.
      count: of negatives.

    Returns:
      [batch, count] int32 places in the memory.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, 0xC8D), epoch)
    words = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (6,), jnp.uint32))(index)
    start, stop = table["starts"][labels], table["starts"][labels + 1]
    others = (table["order"].shape[0] - (stop - start)).astype(jnp.uint32)
    bits = max(int(table["order"].shape[0] - 1).bit_length(), 2)
    ranks = jnp.arange(count, dtype=jnp.uint32)[None] % jnp.maximum(others, 1)[:, None]
    ranks = _permuted(ranks, jnp.maximum(others, 1)[:, None], words[:, :, None], bits).astype(jnp.int32)
    places = jnp.where(ranks < start[:, None], ranks, ranks + (stop - start)[:, None])
    return table["order"][jnp.minimum(places, table["order"].shape[0] - 1)]


def _permuted(x: Array, below: Array, words: Array, bits: int) -> Array:
    """A keyed bijection of [0, below): one of [0, 2^bits), walked on until it lands there."""

    def walk(x):
        return jnp.where(x < below, x, _mixed(x, words, bits))

    return jax.lax.while_loop(lambda x: jnp.any(x >= below), walk, _mixed(x, words, bits))


def _mixed(x: Array, words: Array, bits: int) -> Array:
    """Three rounds of an odd multiplication, an addition and a xor with its own upper half, each invertible."""
    mask = jnp.uint32(2**bits - 1)
    for i in range(3):
        x = (x * (words[:, 2 * i] | 1) + words[:, 2 * i + 1]) & mask
        x = x ^ (x >> (bits // 2))
    return x


def remember(bank: Array, places: Array, embeddings: Array, momentum: Any) -> Array:
    """Returns a memory with the normalised mean of what it held and the new embeddings, by `momentum`.

    Args:
      bank: [examples, dim].
      places: [batch] of them, each once.
      embeddings: [batch, dim].
      momentum: share of what it held.
    """
    held = bank[places].astype(embeddings.dtype)
    return bank.at[places].set(normalized(momentum * held + (1 - momentum) * embeddings).astype(bank.dtype))
