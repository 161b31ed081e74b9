"""Initial weights from another run, training the head alone, and a slower body."""

import jax
import numpy as np
import pytest
from small_world import run_steps

from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import make_plan, resolve


@pytest.fixture
def own(config):
    """The config of a small convolutional network that learns from labels."""
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    config.epochs = 1
    return config


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def trained(own, store, one_device):
    """The variables of a finished run."""
    train(own, store, name="origin", devices=one_device, show=False)
    return store.find("origin").restore_variables("last")[0]


def planned(config, store, one_device):
    return make_plan(resolve(config), store, "", one_device).variables


def test_all_weights_and_statistics_come_from_the_other_run(own, store, trained, one_device):
    own.init_from = "origin"
    jax.tree.map(np.testing.assert_array_equal, planned(own, store, one_device), trained)


def test_a_head_of_another_shape_is_drawn_afresh(own, store, trained, one_device, image_file, tmp_path):
    arrays = dict(np.load(image_file))
    np.savez(tmp_path / "more.npz", **{name: array for name, array in arrays.items() if "soft" not in name})
    own.data.args = {"path": str(tmp_path / "more.npz"), "num_classes": 6}
    drawn = planned(own, store, one_device)
    own.init_from = "origin"
    started = planned(own, store, one_device)
    np.testing.assert_array_equal(started["params"]["fc"]["kernel"], drawn["params"]["fc"]["kernel"])
    assert started["params"]["fc"]["kernel"].shape == (8, 6)
    del started["params"]["fc"], trained["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, started, trained)


def test_another_network_is_refused_with_all_that_differs(own, store, trained, one_device):
    own.init_from = "origin"
    own.model.args = {"widths": (4, 6, 9, 9)}
    with pytest.raises(UserError) as caught:
        planned(own, store, one_device)
    message = str(caught.value)
    assert "missing there: " in message and "params/conv4/kernel" in message
    assert "of another shape: " in message and "params/conv3/kernel" in message


def test_a_run_that_is_not_there_and_a_head_that_is_not_there(own, store, one_device):
    own.init_from = "orign"
    with pytest.raises(UserError, match="config.init_from: .*orign.* Train that run first"):
        planned(own, store, one_device)
    own.init_from, own.trainable, own.model.head = "", "head", "classifier"
    with pytest.raises(UserError, match="no layer 'classifier'"):
        planned(own, store, one_device)


def test_with_the_head_alone_trained_the_body_stays_to_the_bit(own, store, trained, one_device):
    own.init_from, own.trainable, own.optimizer.weight_decay = "origin", "head", 0.1
    train(own, store, name="probe", devices=one_device, show=False)
    probe = store.find("probe").restore_variables("last")[0]
    assert np.abs(probe["params"].pop("fc")["kernel"] - trained["params"].pop("fc")["kernel"]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, probe, trained)


def test_the_body_factor_scales_the_updates_of_the_body(own):
    own.optimizer.momentum, own.optimizer.weight_decay = 0.0, 0.0

    def trained_with(factor):
        own.optimizer.body_factor = factor
        return run_steps(own, 1, 1)[0].params

    still, half, full = trained_with(0.0), trained_with(0.5), trained_with(1.0)
    np.testing.assert_array_equal(half["fc"]["kernel"], full["fc"]["kernel"])
    for layer in ("stem", "bn1"):
        for leaf in still[layer]:
            whole, part = full[layer][leaf] - still[layer][leaf], half[layer][leaf] - still[layer][leaf]
            np.testing.assert_allclose(part, whole / 2, atol=1e-6)
            assert np.abs(whole).max() > 1e-4


def test_the_same_on_one_and_four_devices(own):
    own.trainable = "head"
    one, four = run_steps(own, 1, 3)[0], run_steps(own, 4, 3)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one.params, four.params)
    jax.tree.map(np.testing.assert_array_equal, one.batch_stats, four.batch_stats)
