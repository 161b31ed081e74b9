"""The order of examples: a permutation, the same bits on host and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import epoch_order, eval_batches, train_batches
from kdjax.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_order_is_a_permutation(n):
    order = epoch_order(3, 5, n)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("seed, epoch", [(0, 0), (1, 7), (2**32 - 1, 2**31 - 1)])
def test_host_device_and_traced_orders_have_the_same_bits(seed, epoch):
    host = epoch_order(seed, epoch, 513)
    np.testing.assert_array_equal(host, epoch_order(seed, epoch, 513, jnp))
    traced = jax.jit(lambda seed, epoch: epoch_order(seed, epoch, 513, jnp))
    np.testing.assert_array_equal(host, traced(np.uint32(seed), np.int32(epoch)))
    with jax.enable_x64(True):
        wide = epoch_order(seed, epoch, 513, jnp)
        assert wide.dtype == jnp.int32
        np.testing.assert_array_equal(host, wide)


def test_order_is_pinned():
    """If these numbers change, all runs change."""
    assert epoch_order(0, 0, 8).tolist() == PINNED[0]
    assert epoch_order(1, 2, 8).tolist() == PINNED[1]


PINNED = ([2, 6, 3, 7, 5, 1, 4, 0], [7, 6, 2, 3, 0, 5, 4, 1])


def test_orders_of_all_seeds_and_epochs_differ():
    orders = {epoch_order(seed, epoch, 64).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_orders_are_not_reflections_of_each_other():
    """With a single round of hashing, some orders would be equal up to a fixed xor or shift of the index."""
    n = 64
    orders = np.stack([epoch_order(0, epoch, n) for epoch in range(300)])
    for move in (lambda a, d: a ^ d, lambda a, d: (a + d) % n):
        moved = {move(order, d).astype(np.int32).tobytes() for order in orders for d in range(1, n)}
        assert not moved & {order.tobytes() for order in orders}


def test_every_position_is_uniform_over_examples():
    """Chi-squared of the counts of (position, example) over 4,000 epochs, within six standard deviations."""
    n, epochs = 10, 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), epoch_order(11, epoch, n)] += 1
    expected = epochs / n
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), (n - 1) ** 2
    assert abs(chi2 - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_in_one_epoch_are_not_neighbours_in_the_next():
    for seed in range(5):
        a, b = (np.argsort(epoch_order(seed, epoch, 2000)) for epoch in (0, 1))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.12  # 5 standard deviations


def test_train_batches_follow_the_order_and_drop_the_last_partial_batch():
    rows = np.arange(100, 203, dtype=np.int32)
    batches = train_batches(rows, 4, 2, 10)
    assert batches.shape == (10, 10) and batches.dtype == np.int32
    np.testing.assert_array_equal(batches.ravel(), rows[epoch_order(4, 2, 103)][:100])


def test_fewer_rows_than_a_batch_are_refused():
    with pytest.raises(UserError, match=r"config.batch_size = 11 is more than the 10 training examples"):
        train_batches(np.arange(10), 0, 0, 11)


@pytest.mark.parametrize("size", [1, 8, 9, 16])
def test_eval_batches_hold_every_row_once(size):
    rows = np.arange(50, 50 + size)
    index, mask = eval_batches(rows, 8)
    assert index.shape == mask.shape == (-(-size // 8), 8) and index.dtype == np.int32
    np.testing.assert_array_equal(index[mask], rows)
    assert (index[~mask] == rows[0]).all()
