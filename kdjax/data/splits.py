"""Makes the training, validation and test splits, as a function of the labels, the fractions and the split seed."""

import hashlib

import numpy as np

from kdjax.data.dataset import Rows
from kdjax.errors import UserError
from kdjax.randomness import philox


def make_splits(rows: Rows, validation: float, split_seed: int) -> dict[str, np.ndarray]:
    """Returns the rows of each split; drawn splits have every class in its proportion.

    Args:
      rows: What a source returned. Its test rows are the test split; if it has none, a fraction `rows.test` is drawn.
      validation: Fraction of the training rows to hold out for validation, in [0, 1).
      split_seed: Seed in [0, 2^32), the only one that the splits depend on.

    Returns:
      'train', 'validation', 'test' -> sorted rows [size] int32. A split without rows is absent.

    Raises:
      UserError: A fraction above 0 holds out no example, or no training example is left.
    """
    everything = np.arange(len(rows.labels))
    if rows.num_train is None:
        train, test = _hold_out(everything, rows.labels, rows.test, split_seed, "test_split", "the fraction 'test'")
    else:
        train, test = everything[: rows.num_train], everything[rows.num_train :]
    train, held_out = _hold_out(
        train, rows.labels, validation, split_seed, "validation_split", "config.data.validation"
    )
    splits = {"train": train, "validation": held_out, "test": test}
    return {name: split.astype(np.int32) for name, split in splits.items() if len(split)}


def split_hash(indices: np.ndarray) -> str:
    """Returns the sha256 in hexadecimal of a split's rows [size], the same for any order of them."""
    return hashlib.sha256(np.sort(np.asarray(indices)).astype("<i8").tobytes()).hexdigest()


def _hold_out(pool, labels, fraction: float, split_seed: int, stream: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the sorted `pool` that stay, and those that are held out."""
    if fraction == 0:
        return pool, pool[:0]
    count = int(fraction * len(pool) + 0.5)
    if not 0 < count < len(pool):
        raise UserError(f"{what} = {fraction:g} holds out {count} of {len(pool)} examples; set it to 0 or change it.")
    bits = philox(split_seed, stream)
    row_keys, classes = bits.random_raw(len(labels))[pool], labels[pool]
    quotas = _quotas(np.bincount(classes), count, bits)
    order = np.lexsort((row_keys, classes))  # by class, and in random order within a class
    starts = np.searchsorted(classes[order], np.arange(len(quotas)))
    rank = np.arange(len(pool)) - starts[classes[order]]
    held_out = np.zeros(len(pool), bool)
    held_out[order] = rank < quotas[classes[order]]
    return pool[~held_out], pool[held_out]


def _quotas(sizes: np.ndarray, count: int, bits: np.random.Philox) -> np.ndarray:
    """Divides `count` among classes of `sizes` by the largest remainder, with ties broken at random.

    Integers only, so that the result is exact on every machine.
    """
    quotas, remainders = np.divmod(sizes * count, sizes.sum())
    ranked = np.lexsort((bits.random_raw(len(sizes)), -remainders))
    quotas[ranked[: count - quotas.sum()]] += 1
    return quotas
