"""The order of examples: a hash of (seed, epoch, position), with the same bits on host and device."""

from typing import Any, NamedTuple

import numpy as np

from kdjax.data.dataset import Dataset
from kdjax.errors import UserError
from kdjax.randomness import ORDER_WORDS, UNLABELLED, mix


def epoch_order(seed: Any, epoch: Any, n: int, xp: Any = np) -> Any:
    """Returns a permutation of range(n). All orders of examples come from this function.

    Args:
      seed: Integer [] in [0, 2^32), traced or not.
      epoch: Integer [] in [0, 2^32), traced or not.
      n: Number of examples, below 2^31; static.
      xp: numpy, or jax.numpy on the device; both return the same bits.

    Returns:
      Permutation [n] int32.
    """
    # Arrays of one element, since NumPy warns when scalars overflow.
    seed, epoch = (xp.asarray(value, dtype=xp.uint32).reshape(1) for value in (seed, epoch))
    first, second = (mix(mix(seed ^ xp.uint32(word), xp) + epoch, xp) for word in ORDER_WORDS)
    # Two rounds with independent words: with one round, nearby words would give orders that are shifts of each other.
    keys = mix(mix(xp.arange(n, dtype=xp.uint32) + first, xp) ^ second, xp)
    return xp.argsort(keys, stable=True).astype(xp.int32)


class Steps(NamedTuple):
    """The batches of an epoch.

    Attributes:
      index: Row of each example, [steps, batch_size] int32.
      visit: Number of times that each example was used before, [steps, batch_size] int32. The random key of a view is
        made from it, the row and the seed.
    """

    index: np.ndarray
    visit: np.ndarray


class Order(NamedTuple):
    """The batches of every epoch, as a function of these fields; picklable, for worker processes.

    Attributes:
      rows: Training rows that have labels, [size].
      unlabelled: Training rows that have no labels, [size].
      batch_size: Number of examples in a batch, over all devices.
      steps: Number of batches in an epoch.
      labelled: Number of examples in a batch that are from `rows`.
      seed: Seed of the run, in [0, 2^32).
    """

    rows: np.ndarray
    unlabelled: np.ndarray
    batch_size: int
    steps: int
    labelled: int
    seed: int

    def epoch(self, epoch: int) -> Steps:
        """Returns the batches of an epoch.

        If an epoch takes as many examples as there are, every example is used once, and the last partial batch is left
        out. If it takes more, one pass over the examples follows another. If only some examples have labels, labelled
        and unlabelled ones have separate passes and are spread evenly over every batch.
        """
        if self.labelled == self.batch_size and len(self.rows) // self.batch_size == self.steps:
            order = epoch_order(self.seed, epoch, len(self.rows))[: self.steps * self.batch_size]
            index = np.asarray(self.rows, np.int32)[order].reshape(self.steps, self.batch_size)
            return Steps(index, np.full_like(index, epoch))
        shape = (self.steps, self.batch_size)
        steps = Steps(np.empty(shape, np.int32), np.empty(shape, np.int32))
        places = np.arange(self.labelled) * self.batch_size // max(self.labelled, 1)
        others = np.setdiff1d(np.arange(self.batch_size), places)
        for rows, columns, seed in ((self.rows, places, self.seed), (self.unlabelled, others, self.seed ^ UNLABELLED)):
            if len(columns):
                first = epoch * self.steps * len(columns)
                index, visit = _pass_after_pass(rows, seed, first, self.steps * len(columns))
                steps.index[:, columns] = index.reshape(self.steps, -1)
                steps.visit[:, columns] = visit.reshape(self.steps, -1)
        return steps


def _pass_after_pass(rows: np.ndarray, seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [count] and passes [count], from position `first` of endless, newly shuffled passes over `rows`."""
    passes, places = np.divmod(np.arange(first, first + count), len(rows))
    index = np.empty(count, np.int32)
    for number in np.unique(passes):
        chosen = passes == number
        index[chosen] = np.asarray(rows)[epoch_order(seed, int(number), len(rows))[places[chosen]]]
    return index, passes.astype(np.int32)


def make_order(dataset: Dataset, batch_size: int, seed: int) -> Order:
    """Returns the order of the training examples of a data set.

    Args:
      dataset: Data set with a training split, in which some examples may have no labels.
      batch_size: Number of examples in a batch, over all devices.
      seed: Seed of the run, in [0, 2^32).

    Raises:
      UserError: An epoch has fewer examples than a batch.
    """
    train = dataset.splits["train"]
    has_label = dataset.labelled[train]
    examples = dataset.epoch_examples or len(train)
    if examples < batch_size:
        raise UserError(f"config.batch_size = {batch_size} is more than the {examples} training examples; lower it.")
    labelled = batch_size if has_label.all() else max(1, round(dataset.labelled_share * batch_size))
    return Order(train[has_label], train[~has_label], batch_size, examples // batch_size, labelled, seed)


def train_batches(rows: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Returns the batches of an epoch over labelled rows, without the last partial batch.

    Args:
      rows: Rows of the training split, [size].
      seed: Seed of the run, in [0, 2^32).
      epoch: Number of the epoch, from 0.
      batch_size: Number of examples in a batch, over all devices.

    Returns:
      Rows [steps, batch_size] int32 with steps = size // batch_size.

    Raises:
      UserError: There are fewer rows than a batch has examples.
    """
    steps = len(rows) // batch_size
    if not steps:
        raise UserError(f"config.batch_size = {batch_size} is more than the {len(rows)} training examples; lower it.")
    return Order(rows, rows[:0], batch_size, steps, batch_size, seed).epoch(epoch).index


def eval_batches(rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns batches that have every row once; the last batch is padded with rows that the mask excludes.

    Args:
      rows: Rows of a split, [size], at least one.
      batch_size: Number of examples in a batch, over all devices.

    Returns:
      Rows [steps, batch_size] int32, and a bool mask of the same shape, False for padding.
    """
    steps = -(-len(rows) // batch_size)
    index = np.full(steps * batch_size, rows[0], np.int32)
    index[: len(rows)] = rows
    mask = np.arange(len(index)) < len(rows)
    return index.reshape(steps, batch_size), mask.reshape(steps, batch_size)
