"""A memory of embeddings on the device, and negatives drawn for an example from other classes."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

from kdjax.losses._maps import normalized
from kdjax.randomness import KEY_STREAMS, philox

LOUD_BYTES = 256 * 2**20  # larger memories are announced as a warning before they are allocated


def plan_bytes(examples: int, dim: int, dtype: str) -> int:
    """Returns the bytes of two memories [examples, dim] and of the tables for drawing negatives."""
    return 2 * examples * dim * jnp.dtype(dtype).itemsize + 3 * examples * 4


def first_bank(seed: int, examples: int, dim: int, dtype: str) -> np.ndarray:
    """Returns a memory [examples, dim] of values drawn uniformly within ±1 / √(dim / 3)."""
    bound = 1 / math.sqrt(dim / 3)
    generator = np.random.Generator(philox(seed, "memory"))
    exact = jax.dtypes.canonicalize_dtype(np.float64) if dtype == "float32" else jnp.dtype(dtype)
    return generator.uniform(-bound, bound, (examples, dim)).astype(exact)


def announce(examples: int, dim: int, dtype: str) -> None:
    """Logs how large two memories are going to be, before they are allocated."""
    announce_size(f"2 x {examples} x {dim} in {dtype}", plan_bytes(examples, dim, dtype))


def announce_size(shape: str, size: int) -> None:
    """Logs how large a memory is going to be, before it is allocated."""
    say = logging.warning if size >= LOUD_BYTES else logging.info
    say("a memory of %s takes %.0f MB on every device", shape, size / 2**20)


def class_table(labels: np.ndarray, rows: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Makes, on the host, the tables that lead from rows and classes to places in a memory.

    Args:
      labels: [rows of the whole data set] integer labels.
      rows: [examples] the rows that are remembered: those of the training split.
      num_classes: Number of classes.

    Returns:
      'slot' [rows of the whole data set]: each row's place in the memory, 0 where it has none; 'order' [examples]:
      places sorted by class; 'starts' [classes + 1]: where each class begins in 'order'. All are int32.
    """
    slot = slots(len(labels), rows)
    classes = np.asarray(labels)[rows]
    order = np.argsort(classes, kind="stable").astype(np.int32)
    starts = np.searchsorted(classes[order], np.arange(num_classes + 1)).astype(np.int32)
    return {"slot": slot, "order": order, "starts": starts}


def slots(size: int, rows: np.ndarray) -> np.ndarray:
    """Returns [size] int32, for each row of a data set its place in a memory of `rows`, 0 where it has none."""
    slot = np.zeros(size, np.int32)
    slot[rows] = np.arange(len(rows), dtype=np.int32)
    return slot


def draw_negatives(
    seed: Array, epoch: Array, index: Array, labels: Array, table: Mapping[str, Array], count: int
) -> Array:
    """Draws places of classes other than an example's own, without replacement as long as there are enough.

    A keyed bijection of the places of other classes is evaluated at 0, 1, ..., count - 1, so that the cost does not
    depend on how many there are. The draw is a function of (seed, epoch, example) alone.

    Args:
      seed: [] integer in [0, 2^32), traced or not.
      epoch: [] integer.
      index: [batch] rows of the examples in the full data set.
      labels: [batch] integer labels of the examples.
      table: The tables that `class_table` returned.
      count: Number of negatives for each example, static.

    Returns:
      [batch, count] int32 places in the memory.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, KEY_STREAMS["negatives"]), epoch)
    words = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (6,), jnp.uint32))(index)
    start, stop = table["starts"][labels], table["starts"][labels + 1]
    others = (table["order"].shape[0] - (stop - start)).astype(jnp.uint32)
    bits = max(int(table["order"].shape[0] - 1).bit_length(), 2)
    ranks = jnp.arange(count, dtype=jnp.uint32)[None] % jnp.maximum(others, 1)[:, None]
    ranks = _permuted(ranks, jnp.maximum(others, 1)[:, None], words[:, :, None], bits).astype(jnp.int32)
    places = jnp.where(ranks < start[:, None], ranks, ranks + (stop - start)[:, None])
    return table["order"][jnp.minimum(places, table["order"].shape[0] - 1)]


def _permuted(x: Array, below: Array, words: Array, bits: int) -> Array:
    """Applies a keyed bijection of [0, below): a bijection of [0, 2^bits), repeated until it lands in that range."""

    def walk(x):
        return jnp.where(x < below, x, _mixed(x, words, bits))

    return jax.lax.while_loop(lambda x: jnp.any(x >= below), walk, _mixed(x, words, bits))


def _mixed(x: Array, words: Array, bits: int) -> Array:
    """Applies three rounds of an odd multiplication, an addition and an XOR with its own upper half, all invertible."""
    mask = jnp.uint32(2**bits - 1)
    for i in range(3):
        x = (x * (words[:, 2 * i] | 1) + words[:, 2 * i + 1]) & mask
        x = x ^ (x >> (bits // 2))
    return x


def remember(bank: Array, places: Array, embeddings: Array, momentum: float) -> Array:
    """Returns a memory in which the batch's places hold the normalised mean of the old and the new embeddings.

    Args:
      bank: [examples, dim] the memory.
      places: [batch] places in it, all different.
      embeddings: [batch, dim] the new embeddings.
      momentum: Weight of the old embedding, in [0, 1].
    """
    old = bank[places].astype(embeddings.dtype)
    return bank.at[places].set(normalized(momentum * old + (1 - momentum) * embeddings).astype(bank.dtype))
