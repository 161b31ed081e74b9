"""The train step gives the same numbers on any number of devices, and those of a step written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import Alone, batches_of, largest_difference, make_plan, run_steps

from kdjax import losses, models
from kdjax.data import train_batches
from kdjax.training import parallel
from kdjax.training.evaluation import evaluate, resident
from kdjax.training.member import initial_carry
from kdjax.training.population import Population
from kdjax.training.together import population_steps


def enable_x64():
    return jax.enable_x64(True)


def test_one_device_equals_four_in_float64_after_20_steps(config):
    with enable_x64():
        one, four = run_steps(config, 1, 20), run_steps(config, 4, 20)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(one[0].params))
    assert largest_difference(one[0].params, four[0].params) < 1e-10
    assert largest_difference(one[0].batch_stats, four[0].batch_stats) < 1e-10
    assert largest_difference(one[1].metrics, four[1].metrics) < 1e-10


def test_first_step_in_float32_is_the_same_on_one_and_four_devices(config):
    one, four = run_steps(config, 1, 1), run_steps(config, 4, 1)
    np.testing.assert_allclose(one[1].metrics["loss"][0], four[1].metrics["loss"][0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one[0].opt_state), jax.tree.leaves(four[0].opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.max(np.abs(a), initial=1e-6))


def test_unequal_masks_on_four_devices_equal_one_device(config):
    mask = np.array([1, 0, 0, 0, 1, 1, 1, 1], bool)  # no example of device 1 of 4 counts
    with enable_x64():
        one, four = run_steps(config, 1, 3, mask), run_steps(config, 4, 3, mask)
    assert largest_difference(one[0].params, four[0].params) < 1e-10
    assert one[1].metrics["accuracy"][1] == four[1].metrics["accuracy"][1] == 15


def test_the_body_under_vmap_is_the_pmapped_step(config):
    """vmap raises where an output was not reduced; pmap would silently return that of the first device."""
    plan = make_plan(config, tuple(jax.local_devices()))
    population, batches = Population([plan]), batches_of(plan, 1)
    carry, fixed = jax.device_get((population.place([initial_carry(plan)]), population.fixed))
    body = functools.partial(population_steps, spec=population.spec_at(0), axis_name=parallel.AXIS)
    mapped = jax.vmap(body, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS)
    (state,), (sums,) = jax.device_get(jax.jit(mapped)(carry, fixed, batches))
    by_pmap = run_steps(config, 4, 1)
    np.testing.assert_allclose(sums.metrics["loss"][0], by_pmap[1].metrics["loss"][0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(by_pmap[0].opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.max(np.abs(a), initial=1e-6))


def test_vmap_finds_a_forgotten_reduction():
    def body(state, fixed, batch):
        return state + batch.sum()

    with pytest.raises(ValueError, match="out_axes"):
        jax.vmap(body, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS)(0.0, None, jnp.ones((4, 2)))


def test_a_step_is_what_it_says(config):
    """Compares loss and update with a step written out with jax.grad on the whole batch, in float64."""
    config.data.view = "none"
    config.losses.wttm.normalize = "none"
    with enable_x64():
        (state, sums), index, plan = _one_step(config)
        params, loss = _by_hand(plan, index)
    np.testing.assert_allclose(float(sums.metrics["loss"][0]) / 8, loss, rtol=1e-10)
    for found, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def _one_step(config):
    plan = make_plan(config, tuple(jax.local_devices()[:1]))
    index = train_batches(plan.dataset.splits["train"], 0, 0, config.batch_size)[0]
    return run_steps(config, 1, 1), index, plan


def _by_hand(plan, index):
    images = (plan.dataset.images[index] / 255.0 - np.array(plan.spec.stored.mean)) / np.array(plan.spec.stored.std)
    labels = plan.dataset.labels[index]
    teacher = plan.teachers["a"]
    teacher_logits = models.call(teacher.model, teacher.variables, images, train=False)[0].logits

    def objective(params):
        variables = {"params": params, "batch_stats": plan.variables["batch_stats"]}
        logits = models.call(plan.spec.model, variables, images, train=True)[0].logits
        ce = jnp.mean(losses.cross_entropy(logits, labels))
        return ce + 2.0 / 3 * jnp.mean(
            losses.wttm(logits, teacher_logits, gamma=0.5)
        )  # the first of three warm-up epochs

    params = jax.tree.map(jnp.asarray, plan.variables["params"])
    loss, gradients = jax.jit(jax.value_and_grad(objective))(params)
    rate, decay = 0.05, 5e-4  # the first update with momentum is that without
    return jax.tree.map(lambda p, g: p - rate * (g + decay * p), params, gradients), loss


def test_the_same_layout_twice_gives_the_same_bits(config):
    first, second = run_steps(config, 2, 3), run_steps(config, 2, 3)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_many_steps_a_dispatch_equal_one_a_dispatch(config):
    config.model.name, config.model.args, config.data.view = "mlp", {"hidden": (8,)}, "none"
    plan = make_plan(config, tuple(jax.local_devices()[:2]))
    together = Alone(plan).step(batches_of(plan, 6))
    apart = run_steps(config, 2, 6)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_evaluation_counts_every_example_once_whatever_the_batch(config):
    for batch_size, count in ((8, 1), (24, 2), (512, 4)):
        plan = make_plan(config, tuple(jax.local_devices()[:count]))
        scores = evaluate(plan.spec.model, plan.variables, plan.dataset, "test", batch_size, plan.devices)
        arrays = resident(plan.dataset, plan.devices)
        assert scores.keys() == {"loss", "accuracy", "brier", "distance"} and arrays["images"].dtype == np.uint8
        images = (plan.dataset.images[plan.dataset.splits["test"]] / 255.0 - 0.5) / 0.5
        logits = models.call(plan.spec.model, plan.variables, images.astype(np.float32), train=False)[0].logits
        expected = np.mean(np.argmax(logits, -1) == plan.dataset.labels[plan.dataset.splits["test"]])
        assert scores["accuracy"] == pytest.approx(expected)


def test_label_losses_see_labelled_examples_only(config):
    """A label loss is averaged over labelled examples, a distillation loss over all."""
    plan = make_plan(config, tuple(jax.local_devices()[:2]))
    batches = batches_of(plan, 1)
    labelled = np.array(batches.labelled)
    labelled[0], labelled[1, :, 1:] = False, False  # one labelled example, on the second device
    _, partly = Alone(plan).step(batches._replace(labelled=labelled))
    _, wholly = Alone(plan).step(batches)
    assert partly.metrics["losses/wttm"][0] == pytest.approx(wholly.metrics["losses/wttm"][0], rel=1e-5)
    assert partly.metrics["losses/cross_entropy"][0] != pytest.approx(
        wholly.metrics["losses/cross_entropy"][0], rel=1e-3
    )
