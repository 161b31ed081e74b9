"""Memories of a network's own outputs: MCMI's centroids and SoTeacher's mean outputs."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import Alone, assert_stopped_and_resumed_is_unbroken, batches_of, largest_difference, without_times

from kdjax import losses, models
from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training import metrics
from kdjax.training.loop import train, train_together
from kdjax.training.plan import plan_with, resolve

TERMS = {
    "cross_entropy": {"weight": 1.0},
    "mcmi": {"weight": 0.5, "cmi_weight": 0.2, "momentum": 0.9},
    "consistency": {"weight": 1.0},
    "lipschitz": {"weight": 1e-3},
}


def configured(terms: dict, **changed) -> ConfigDict:
    """Returns a run of a second: 160 examples of four classes, batches of 16."""
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"classes": 4, "dim": 6, "n_train": 200, "n_test": 40}
    config.data.validation = 0.2
    config.model.args = {"hidden": (9,)}
    config.batch_size, config.eval_batch_size, config.epochs = 16, 40, 2
    config.losses = terms
    if "mcmi" in terms:
        config.warmup = ConfigDict(
            {**config.warmup.to_dict(), "epochs": 1, "losses": {"mcmi": 1.0}, "trains": "distiller"}
        )
    config.update(changed)
    return config


def make_plan(config: ConfigDict, devices=1):
    config = resolve(config)
    return plan_with(config, load_dataset(config.data, ""), {}, tuple(jax.local_devices()[:devices]))


def outputs_of(plan, params, rows) -> np.ndarray:
    logits = models.call(plan.spec.model, {"params": params}, plan.dataset.images[rows], train=False)[0].logits
    return np.asarray(jax.nn.softmax(logits), np.float64)


def one_by_one(plan, spec, steps: int):
    """Yields (batch's rows, state before, state after) of each step of a phase."""
    alone, batches = Alone(plan, spec), batches_of(plan, steps)
    for step in range(steps):
        before = jax.device_get(alone.carry[0])
        after, _ = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        yield np.ravel(batches.index[:, step]), before, after


def test_the_warmup_gathers_the_mean_outputs_of_the_initial_network_and_changes_nothing_else():
    plan = make_plan(configured({"mcmi": {"weight": 1.0}}))
    steps = list(one_by_one(plan, plan.warmup, 10))
    rows, first, last = np.concatenate([seen for seen, _, _ in steps]), steps[0][1], steps[-1][2]
    jax.tree.map(np.testing.assert_array_equal, first.params, last.params)
    p, labels = outputs_of(plan, first.params, rows), plan.dataset.labels[rows]
    expected = np.stack([p[labels == k].mean(axis=0) for k in range(4)])
    memory = last.distiller["state"]["mcmi"]["own"]["memory"]
    np.testing.assert_allclose(memory["centroids"], expected, rtol=1e-5)


@pytest.mark.parametrize("momentum", [1.0, 0.7])
def test_training_holds_the_centroids_fixed_or_moves_them_by_each_batch(momentum):
    plan = make_plan(configured({"mcmi": {"weight": 1.0, "momentum": momentum}}))
    for rows, before, after in one_by_one(plan, plan.spec, 2):
        old, new = (np.asarray(s.distiller["state"]["mcmi"]["own"]["memory"]["centroids"]) for s in (before, after))
        p, labels = outputs_of(plan, before.params, rows), plan.dataset.labels[rows]
        for k in range(4):
            mean = p[labels == k].mean(axis=0) if (labels == k).any() else old[k]
            np.testing.assert_allclose(new[k], momentum * old[k] + (1 - momentum) * mean, rtol=1e-5)
        assert largest_difference(before.params, after.params) > 1e-4
    if momentum == 1:
        np.testing.assert_array_equal(old, new)


def test_centroids_need_the_warmup_that_gathers_them():
    config = configured({"mcmi": {"weight": 1.0}})
    config.warmup = defaults().warmup
    with pytest.raises(UserError, match="config.losses.mcmi: 'mcmi' reads what a warm-up gathers"):
        make_plan(config)


@pytest.mark.parametrize(("average", "weights"), [("mean", (1, 1, 1)), ("released", (2, 1, 1))])
def test_an_example_is_remembered_by_the_mean_of_its_outputs(average, weights):
    """The whole training set is one batch, so that every step sees each example once."""
    terms = {"cross_entropy": {"weight": 1.0}, "consistency": {"weight": 1.0, "average": average}}
    plan = make_plan(configured(terms, batch_size=160))
    train_rows, seen, values = plan.dataset.splits["train"], [], []
    alone, batches = Alone(plan), batches_of(plan, 4)
    for step in range(4):
        state = jax.device_get(alone.carry[0])
        seen.append(outputs_of(plan, state.params, train_rows))
        memory = state.distiller["state"]["consistency"]["own"]["memory"]
        new, sums = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        values.append(metrics.means(sums.metrics)["losses/consistency"])
        alone.place(new, metrics.zero_train_sums(plan.spec, plan.numbers))
    mean = np.tensordot(np.array(weights) / sum(weights), np.stack(seen[:3]), 1)
    np.testing.assert_allclose(memory["outputs"], mean, rtol=1e-5)
    assert values[0] == 0 and (memory["visits"] == 3).all()
    assert values[3] == pytest.approx(((seen[3] - mean) ** 2).sum(axis=1).mean(), rel=1e-3)


@pytest.mark.slow
def test_memories_are_the_same_on_one_and_four_devices(config):
    config.teachers, config.losses = {}, TERMS
    config.model.name = "four_layers:FourLayers"
    config.warmup = configured(TERMS).warmup
    with jax.enable_x64(True):
        for phase in ("warmup", "spec"):
            states = []
            for devices in (1, 4):
                plan = make_plan(config, devices)
                *_, (_, before, after) = one_by_one(plan, getattr(plan, phase), 3)
                states.append(after)
                if phase == "spec" and devices == 1:
                    alone = Alone(plan)
                    new, sums = alone.step(jax.tree.map(lambda leaf: leaf[:, :1], batches_of(plan, 1)))
                    expected = losses.lipschitz(plan.variables["params"], new.batch_stats)
                    value = metrics.means(sums.metrics)["losses/lipschitz"]
                    np.testing.assert_allclose(value, expected, rtol=1e-12)
            assert largest_difference(states[0].trainable, states[1].trainable) < 1e-10
            assert largest_difference(states[0].distiller["state"], states[1].distiller["state"]) < 1e-10
            assert largest_difference(before.distiller["state"], after.distiller["state"]) > 1e-3


def test_a_stopped_run_with_memories_of_outputs_resumes_to_the_same_bits(one_device, tmp_path, monkeypatch):
    """It is stopped inside the warm-up's epoch, and inside one of training proper."""
    monkeypatch.setattr("kdjax.training.trainer.MOST_STEPS_A_DISPATCH", 4)
    for dispatches in (2, 5):
        with monkeypatch.context() as patch:
            store = Store(tmp_path / str(dispatches))
            assert_stopped_and_resumed_is_unbroken(configured(TERMS), store, one_device, dispatches, patch)


def test_members_of_a_population_have_memories_of_their_own(tmp_path, one_device):
    configs, names = [configured(TERMS, seed=seed) for seed in (1, 2)], ("a", "b")
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    with jax.enable_x64(True):
        for config, name in zip(configs, names, strict=True):
            train(config, alone, name=name, devices=one_device, show=False)
        train_together(configs, together, names=names, devices=one_device, show=False)
    assert together.find("a").manifest["population"]["members"] == ["a", "b"]
    for name in names:
        pair = [store.find(name) for store in (alone, together)]
        variables = [run.restore_variables("last")[0] for run in pair]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), *variables)
        for one, other in zip(*(without_times(run.metrics()) for run in pair), strict=True):
            assert one["train"] == pytest.approx(other["train"], rel=1e-9)
