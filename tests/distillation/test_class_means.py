"""What is gathered of each class, and the phases that read it: KD++, WKD-L and GKL with weights of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import Alone, batches_of, largest_difference
from test_methods import EQUAL, configured, make_plan, without_labels

from kdjax import losses, models
from kdjax.data.views import augment
from kdjax.distillation.class_means import ClassOutputs
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


@pytest.mark.slow
def test_one_device_is_four(kdpp):
    with jax.enable_x64(True):
        one, four = (trained(make_plan(kdpp, devices, EQUAL), 3, 3)[1] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10
    assert largest_difference(one.distiller["state"], four.distiller["state"]) < 1e-10


@pytest.fixture
def wkdl(config):
    config = without_labels(configured(config, "wkdl"))
    config.data.view, config.losses.wkdl.images = "none", 5
    return config


def test_the_warmup_gathers_the_first_vectors_of_each_class_and_the_loss_falls_after_it(wkdl):
    plan = make_plan(wkdl, 1)
    one_epoch = len(plan.dataset.splits["train"]) // wkdl.batch_size
    gathered, state, rows = trained(plan, one_epoch, 30)
    assert largest_difference(plan.variables["params"], gathered.params) == 0
    order = np.ravel(batches_of(plan, one_epoch).index)
    images = augment.render(
        plan.dataset.images, order, order, 0, 0, view="none", stored=plan.dataset.stored, train=False
    )
    output, _ = models.call(plan.teachers["a"].model, plan.teachers["a"].variables, images, train=False)
    vectors, labels = np.asarray(output.pooled), plan.dataset.labels[order]
    found = state.distiller["state"]["wkdl"]["a"]["batch_stats"]
    for label in range(4):
        first = vectors[labels == label][:5]
        assert found["counts"][label] == len(first)
        np.testing.assert_allclose(found["vectors"][label, : len(first)], first, rtol=1e-4, atol=1e-5)
    expected = losses.relation_costs(found["vectors"], found["counts"])
    np.testing.assert_allclose(found["costs"], expected, rtol=1e-5, atol=1e-6)
    first, last = (np.mean([row["losses/wkdl"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < first


@pytest.mark.slow
def test_relations_are_the_same_on_one_and_four_devices(wkdl):
    with jax.enable_x64(True):
        one, four = (trained(make_plan(wkdl, devices), 3, 3)[1] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10
    assert largest_difference(one.distiller["state"], four.distiller["state"]) < 1e-9


def test_weights_of_classes_are_the_means_of_the_epoch_before():
    """Uniform in the first epoch; a class that an epoch did not show keeps its mean."""
    adapter = ClassOutputs(teacher_temperature=2.0)
    dataset = type("Blank", (), {"num_classes": 3})
    memory, rng = adapter.first_memory(0, dataset), np.random.default_rng(0)
    seen = []
    for epoch, labels in ((0, [0, 1, 2, 2]), (0, [0, 0, 1, 1]), (1, [0, 0, 1, 2]), (2, [1, 1, 1, 1])):
        labels, logits = np.array(labels), rng.normal(size=(4, 3)).astype(np.float32)
        counted = np.array([True, True, True, epoch > 0])
        given = {"teacher_logits": jnp.asarray(logits), "classes": labels, "where": counted, "labelled": counted | True}
        given |= {"epoch": jnp.int32(epoch), "axis_name": None}
        made, changed = adapter.apply({"memory": memory}, given, mutable=["memory"])
        memory = changed["memory"]
        seen.append((epoch, labels[counted], np.asarray(jax.nn.softmax(logits / 2))[counted]))
        expected = np.full((3, 3), 1 / 3)
        for before in range(epoch):
            of_epoch = [part for part in seen if part[0] == before]
            classes, outputs = (np.concatenate([part[i] for part in of_epoch]) for i in (1, 2))
            for label in np.unique(classes):
                expected[label] = outputs[classes == label].mean(0)
        np.testing.assert_allclose(made["class_outputs"], expected, rtol=1e-5)
