"""Averages of the weights: the recursions in NumPy, BatchNorm's statistics estimated again, resuming, populations."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import Alone, assert_stopped_and_resumed_is_unbroken, batches_of, make_plan, student_config

from kdjax import models
from kdjax.config import defaults
from kdjax.data import load_dataset, train_batches
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training import averaging
from kdjax.training.loop import train, train_together
from kdjax.training.plan import resolve


def small(name: str, **average) -> ConfigDict:
    config = defaults()
    config.data.name, config.data.validation = "gaussian", 0.2
    config.data.args = {"classes": 4, "dim": 6, "n_train": 200, "n_test": 40}
    config.model.args = {"hidden": (9,)}
    config.batch_size, config.eval_batch_size, config.epochs, config.eval_every = 16, 40, 4, 4
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.average.update({"name": name, **average})
    return config


def convolutional(image_file: str, **average) -> ConfigDict:
    config = student_config(epochs=2)
    config.data.args, config.data.view = {"path": image_file}, "none"
    config.losses, config.teachers = {"cross_entropy": {"weight": 1.0}}, {}
    config.average.update(average)
    return config


def weights(run) -> dict:
    return run.restore_variables("last")[0]["params"]


@pytest.mark.parametrize(("name", "start"), [("ema", 0), ("ema", 2), ("swa", 0), ("swa", 2)])
def test_the_recursion_is_that_of_its_definition(name, start):
    draw, per_epoch = np.random.default_rng(0), 3
    visited = [draw.normal(size=(2, 3)).astype(np.float32) for _ in range(4 * per_epoch + 1)]
    config = {"average": {"name": name, "decay": 0.9, "start": start}}
    average = averaging.start({"w": visited[0]}, config)
    for made, w in enumerate(visited[1:], 1):
        average = averaging.update(average, {"w": w}, np.int32(made), config, per_epoch)
        if made == start * per_epoch:
            np.testing.assert_array_equal(average["w"], w)
    if name == "swa":
        expected = np.mean([visited[epoch * per_epoch] for epoch in range(start + 1, 5)], axis=0)
    else:
        expected = visited[start * per_epoch]
        for w in visited[start * per_epoch + 1 :]:
            expected = 0.9 * expected + 0.1 * w
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5, atol=1e-6)
    assert averaging.start({"w": 1.0}, {"average": {"name": ""}}) == {}


def test_averages_of_no_length_are_the_plain_run_and_members_equal_runs_alone(tmp_path, one_device):
    """EMA with decay 0 and SWA of one epoch are the last weights, to the bit; other averages are other weights."""
    store, options = Store(tmp_path), {"devices": one_device, "show": False}
    chosen = {"plain": {"name": ""}, "zero": {"name": "ema", "decay": 0.0}, "one": {"name": "swa", "start": 3}}
    chosen |= {"ema": {"name": "ema", "decay": 0.9}, "swa": {"name": "swa", "start": 1}}
    found = {name: train(small(**fields), store, name=name, **options) for name, fields in chosen.items()}
    for name in ("zero", "one"):
        jax.tree.map(np.testing.assert_array_equal, weights(store.find(name)), weights(store.find("plain")))
        assert found[name]["last"] == found["plain"]["last"]
    for name in ("ema", "swa"):
        assert found[name]["last"]["test"]["loss"] != found["plain"]["last"]["test"]["loss"]
    configs = [small(**chosen[name]) for name in ("plain", "ema", "swa")]
    configs += [small("ema", decay=0.8)]
    together = Store(tmp_path / "together")
    train_together(configs, together, names=["plain", "ema", "swa", "ema8"], **options)
    for name in ("plain", "ema", "swa"):
        pair = [weights(each.find(name)) for each in (store, together)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *pair)


def test_batch_norm_has_the_mean_statistics_of_the_last_epoch(image_file, tmp_path, one_device):
    config = convolutional(image_file, name="ema", decay=0.8)
    store = Store(tmp_path)
    result = train(config, store, devices=one_device, show=False, name="averaged")
    variables, _ = store.find("averaged").restore_variables("last")
    # The averaged weights are those of the recursion over the states of the same run without an average.
    plain = make_plan(convolutional(image_file), one_device)
    alone, steps = Alone(plain), plain.spec.steps_per_epoch
    batches, expected = batches_of(plain, 2 * steps), plain.variables["params"]
    for step in range(2 * steps):
        state, _ = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), variables["params"], expected)
    # Statistics of each batch, from running ones that were 0 before it: (1 - 0.9) times them.
    data = load_dataset(resolve(config).data, "")
    blank = jax.tree.map(np.zeros_like, variables["batch_stats"])
    found = []
    for rows in train_batches(data.splits["train"], 0, 1, config.batch_size):
        images = (data.images[rows] / 255 - 0.5) / 0.5
        given = {"params": variables["params"], "batch_stats": blank}
        _, after = models.call(plain.spec.model, given, images.astype(np.float32), train=True)
        found.append(after)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0) / 0.1, *found)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), variables["batch_stats"], dict(mean)
    )
    last = store.find("averaged").metrics()[-1]
    assert result["last"]["test"] == last["test"]


def test_a_run_with_an_average_resumes_exactly(image_file, tmp_path, one_device, monkeypatch):
    config = convolutional(image_file, name="ema", decay=0.8)
    assert_stopped_and_resumed_is_unbroken(config, Store(tmp_path), one_device, 8, monkeypatch)


def test_an_average_that_would_never_begin_is_refused():
    with pytest.raises(UserError, match="config.average.start must be below config.epochs, 4, not 4"):
        resolve(small("swa", start=4))
    with pytest.raises(UserError, match="config.average.name must be '', 'ema' or 'swa', not 'emma'"):
        resolve(small("emma"))
