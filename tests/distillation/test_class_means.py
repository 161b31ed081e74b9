"""KD++: the class means that its warm-up gathers, and the phase that reads them."""

import jax
import numpy as np
import pytest
from small_world import Alone, batches_of, largest_difference
from test_methods import EQUAL, configured, make_plan, without_labels

from kdjax import models
from kdjax.data.views import augment
from kdjax.training import metrics


@pytest.fixture
def kdpp(config):
    config = without_labels(configured(config, "kdpp"))
    config.data.view = "none"
    return config


def trained(plan, gathering, learning):
    """Makes steps of both phases; returns the state after each and the rows of the second."""
    alone = Alone(plan, plan.warmup)
    gathered, _ = alone.step(batches_of(plan, gathering))
    alone = Alone(plan, plan.spec)
    alone.place(gathered, metrics.zero_train_sums(plan.spec, plan.numbers))
    state, batches, rows = gathered, batches_of(plan, learning), []
    for step in range(learning):
        state, sums = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        rows.append(metrics.means(sums.metrics))
        alone.place(state, metrics.zero_train_sums(plan.spec, plan.numbers))
    return gathered, state, rows


def test_the_warmup_gathers_the_means_and_the_loss_falls_after_it(kdpp):
    plan = make_plan(kdpp, 1, EQUAL)
    one_epoch = len(plan.dataset.splits["train"]) // kdpp.batch_size
    gathered, state, rows = trained(plan, one_epoch, 30)
    assert largest_difference(plan.variables["params"], gathered.params) == 0  # the warm-up trains nothing
    found = gathered.distiller["state"]["nd"]["a"]["batch_stats"]
    rows_of = plan.dataset.splits["train"][: one_epoch * kdpp.batch_size]
    images = augment.render(
        plan.dataset.images, rows_of, rows_of, 0, 0, view="none", stored=plan.dataset.stored, train=False)  # fmt: skip
    output, _ = models.call(plan.teachers["a"].model, plan.teachers["a"].variables, images, train=False)
    vectors, labels = np.asarray(output.pooled), plan.dataset.labels[rows_of]
    assert found["counts"].sum() == len(rows_of)
    for label in range(4):
        mean = found["sums"][label] / found["counts"][label]
        np.testing.assert_allclose(mean, vectors[labels == label].mean(0), rtol=1e-4, atol=1e-5)
    again = state.distiller["state"]["nd"]["a"]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, again, found)  # the second phase leaves them
    first, last = (np.mean([row["losses/nd"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < first < 1


def test_one_device_is_four(kdpp):
    with jax.enable_x64(True):
        one, four = (trained(make_plan(kdpp, devices, EQUAL), 3, 3)[1] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10
    assert largest_difference(one.distiller["state"], four.distiller["state"]) < 1e-10
