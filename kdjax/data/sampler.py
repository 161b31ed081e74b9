"""The order of examples: a hash of (seed, epoch, position), the same bits on host and device."""

from typing import Any, NamedTuple

import numpy as np

from kdjax.data.dataset import Dataset
from kdjax.errors import UserError
from kdjax.randomness import ORDER_WORDS, UNLABELLED, mix


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
    first, second = (mix(mix(seed ^ xp.uint32(word), xp) + epoch, xp) for word in ORDER_WORDS)
    # Two rounds with independent words: with one, nearby words would give orders that are shifts of each other.
    keys = mix(mix(xp.arange(n, dtype=xp.uint32) + first, xp) ^ second, xp)
    return xp.argsort(keys, stable=True).astype(xp.int32)


class Steps(NamedTuple):
    """Who is in which batch of an epoch.

    Attributes:
      index: [steps, batch_size] int32 rows.
      visit: [steps, batch_size] int32, how often an example was seen before: with its row and the seed it keys a view.
    """

    index: np.ndarray
    visit: np.ndarray


class Order(NamedTuple):
    """The batches of every epoch: a function of the seed and what is here; picklable, for worker processes.

    Attributes:
      rows: [size] of the training split, those with labels where some have none.
      unlabelled: [size] those without labels.
      batch_size: over all devices.
      steps: of an epoch.
      labelled: how many of a batch are of `rows`.
      seed: of the run, in [0, 2^32).
    """

    rows: np.ndarray
    unlabelled: np.ndarray
    batch_size: int
    steps: int
    labelled: int
    seed: int

    def epoch(self, epoch: int) -> Steps:
        """Returns an epoch's batches.

        Where the set has as many examples as an epoch takes, every example comes once and the last partial batch is
        left out. Where it has fewer, one pass over it follows another, and where only some are labelled, labelled and
        unlabelled ones pass at their own pace, spread evenly over every batch.
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
    """[count] rows and passes from position `first` on of endless passes over `rows`, each in its own order."""
    passes, places = np.divmod(np.arange(first, first + count), len(rows))
    index = np.empty(count, np.int32)
    for number in np.unique(passes):
        chosen = passes == number
        index[chosen] = np.asarray(rows)[epoch_order(seed, int(number), len(rows))[places[chosen]]]
    return index, passes.astype(np.int32)


def make_order(dataset: Dataset, batch_size: int, seed: int) -> Order:
    """Returns the order in which a data set is trained on.

    Args:
      dataset: its training split, of which some may have no labels.
      batch_size: over all devices.
      seed: of the run, in [0, 2^32).

    Raises:
      UserError: an epoch has fewer examples than a batch takes.
    """
    train = dataset.splits["train"]
    has_label = dataset.labelled[train]
    examples = dataset.epoch_examples or len(train)
    if examples < batch_size:
        raise UserError(f"config.batch_size = {batch_size} is more than the {examples} training examples; lower it.")
    labelled = batch_size if has_label.all() else max(1, round(dataset.labelled_share * batch_size))
    return Order(train[has_label], train[~has_label], batch_size, examples // batch_size, labelled, seed)


def train_batches(rows: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Returns an epoch's batches of labelled rows in its order, without the last partial one.

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
    return Order(rows, rows[:0], batch_size, steps, batch_size, seed).epoch(epoch).index


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
