"""Every random stream of kdjax: the words that keep the streams apart, and the draws that host and device share.

A draw is a function of its stream and of (seed, epoch, example), (seed, step, device) or (seed, a name), never of state
that is carried along. The streams use three generators; within one generator no two streams share a word. Changing a
word changes the numbers of every run that draws from its stream, so a change must come with a new `VERSION`.
"""

import zlib
from typing import Any

import numpy as np

# Recorded in the manifest of every run. A run that another version began is warned when it resumes, if it draws from a
# stream that has changed. 2: dropout has a word of its own; in version 1 it shared that of the example keys.
VERSION = 2

# Streams of `bits`, keyed by (seed, epoch, example): what an image's view needs, the partner that it is mixed with, and
# the teacher that is chosen for it.
EXAMPLE_STREAMS = {
    "crop": 0x76696577,
    "resized": 0x76696578,
    "rotate": 0x76696579,
    "jitter": 0x7669657A,
    "policy": 0x7669657B,
    "hole": 0x7669657C,
    "mix": 0x7669657D,
    "partner": 0x7669657E,
    "teacher": 0x7669657F,
}

# The order of an epoch (`kdjax.data.sampler`) is a hash keyed by (seed, epoch) through two words. Unlabelled examples
# are ordered by the seed XOR this word.
ORDER_WORDS = (0x6B646A61, 0x786F7264)
UNLABELLED = 0x756E6C61

# Streams of NumPy's Philox generator, keyed by (seed, word). Leaves of networks and adapters are keyed by (seed, crc32
# of their path) instead, see `leaf_generator`.
PHILOX_STREAMS = {
    "test_split": 1,
    "validation_split": 2,
    "gaussian": 3,
    "letters": 4,
    "subset": 11,
    "long_tailed": 12,
    "label_noise": 13,
    "labelled_fraction": 14,
    "random_split": 15,
    "fold": 16,
    "memory": 0xC8D,
}

# Streams of jax.random, whose word is folded into the key of the seed: `example_keys` by (epoch, example), for
# drop-path; dropout by (step, device); the negatives of a memory, the patches that are masked and the noise of teachers
# by (epoch, example).
KEY_STREAMS = {
    "example_keys": 0xD809,
    "dropout": 0x64726F70,
    "negatives": 0xC8D,
    "patches": 0x70746368,
    "noise": 0x6E6F6973,
}


def philox(seed: int, stream: str) -> np.random.Philox:
    """Returns the Philox bit generator of a stream of PHILOX_STREAMS.

    NumPy promises that its raw bits never change, but not what its distributions make of them.

    Args:
      seed: Integer in [0, 2^32).
      stream: Name of a row of PHILOX_STREAMS.
    """
    return _philox(seed, PHILOX_STREAMS[stream])


def leaf_generator(seed: int, path: str) -> np.random.Generator:
    """Returns the generator that draws the initial values of one leaf of a network or an adapter.

    Args:
      seed: Integer in [0, 2^32).
      path: Path of the leaf among the variables, such as 'params/fc/kernel'.
    """
    return np.random.Generator(_philox(seed, zlib.crc32(path.encode())))


def named_seed(seed: int, name: str) -> int:
    """Returns a seed in [0, 2^32) that belongs to a name: two adapters of one run start from different weights."""
    return (zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF


def _philox(seed: int, word: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, word], np.uint64))


def bits(example: Any, epoch: Any, seed: Any, stream: str, count: int, xp: Any = np) -> Any:
    """Returns [batch, count] uint32 random bits.

    Args:
      example: [batch] integers, indices in the full set.
      epoch: [] or [batch] integers in [0, 2^32), traced or not.
      seed: [] integer in [0, 2^32), traced or not.
      stream: Name of a row of EXAMPLE_STREAMS, static.
      count: Words for each example, static.
      xp: numpy, or jax.numpy on the device; both give the same bits.
    """
    # Arrays of one element, since NumPy warns when scalars wrap around.
    seed, epoch = (xp.asarray(value, dtype=xp.uint32).reshape(-1) for value in (seed, epoch))
    example = xp.asarray(example, dtype=xp.uint32)
    word = xp.asarray([EXAMPLE_STREAMS[stream]], dtype=xp.uint32)
    first = mix(mix(mix(seed ^ word, xp) + epoch, xp) + example, xp)
    second = mix(mix(mix(seed + word, xp) ^ epoch, xp) ^ example, xp)
    column = mix(xp.arange(1, count + 1, dtype=xp.uint32), xp)
    # Two rounds with two words, as for the order of an epoch: with one, equal sums would give equal bits.
    return mix(mix(first[:, None] + column, xp) ^ second[:, None], xp)


def unit(words: Any, xp: Any = np) -> Any:
    """Returns float32 multiples of 2^-24 in [0, 1) from uint32 words of any shape."""
    return (words >> xp.uint32(8)).astype(xp.float32) * xp.float32(2**-24)


def partners(train: Any, example: Any, epoch: Any, seed: Any, xp: Any = np) -> Any:
    """Returns the row that each example is mixed with: any row of the training split, whatever the batch and device.

    Args:
      train: [size] int32 rows of the training split.
      example: [batch] indices in the full set.
      epoch: [] integer in [0, 2^32), traced or not.
      seed: [] integer in [0, 2^32), traced or not.
      xp: numpy, or jax.numpy on the device; both give the same bits, so that a stream can read partners as well.

    Returns:
      [batch] int32 rows from `train`, drawn with replacement.
    """
    words = bits(example, epoch, seed, "partner", 1, xp)[:, 0]
    return xp.asarray(train)[(words % xp.uint32(len(train))).astype(xp.int32)].astype(xp.int32)


def mix(x: Any, xp: Any) -> Any:
    """Scrambles uint32 words by a bijection, the finalizer of MurmurHash3 (Appleby, 2011)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> xp.uint32(shift))) * xp.uint32(factor)
    return x ^ (x >> xp.uint32(16))
