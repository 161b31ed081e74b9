"""ViTKD: two vision transformers of one grid of patches."""

import jax
import numpy as np
import pytest
from small_world import largest_difference, values_of

from kdjax import models
from kdjax.data import load_dataset
from kdjax.distillation.masked import hidden_patches
from kdjax.errors import UserError
from kdjax.training.plan import plan_with, rehearse, resolve
from kdjax.training.teachers import Teacher

SMALL = {"patch": 2, "dim": 6, "depth": 4}


@pytest.fixture
def vitkd(config):
    config.model.name, config.model.args = "deit_tiny", SMALL
    config.losses = {"cross_entropy": {"weight": 0.0}, "vitkd": {"weight": 1.0}}
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.01
    return config


def plan_of(config, num_devices=1, name="deit_tiny", **args):
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    model = models.create_model(name, 4, **args)
    teacher = Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), 4, "softmax", {}, None)
    return plan_with(config, dataset, {"a": teacher}, tuple(jax.local_devices()[:num_devices]))


def test_the_term_falls_and_every_part_of_the_adapter_learns(vitkd):
    plan = plan_of(vitkd, **{**SMALL, "dim": 9})
    state, rows = values_of(plan, 30, "vitkd")
    assert np.mean(rows[-6:]) < np.mean(rows[:6])
    before, after = plan.distiller["params"]["vitkd"]["a"], state.distiller["params"]["vitkd"]["a"]
    assert set(before) == {"align1", "align2", "align_last", "generate1", "generate2", "mask_token"}
    for part in before:
        assert largest_difference(before[part], after[part]) > 1e-3, part


@pytest.mark.slow
def test_one_device_is_four(vitkd):
    with jax.enable_x64(True):
        one, four = (values_of(plan_of(vitkd, devices, **{**SMALL, "dim": 9}), 3, "vitkd")[0] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10


def test_half_of_the_patches_are_masked_as_seed_epoch_and_example_say():
    masks = hidden_patches(3, 1, np.arange(200), (4, 4), 0.5)
    assert masks.shape == (200, 4, 4) and (masks.sum((1, 2)) == 8).all()
    assert 0.3 < masks.mean(0).min() and masks.mean(0).max() < 0.7
    np.testing.assert_array_equal(hidden_patches(3, 1, np.array([7]), (4, 4), 0.5)[0], masks[7])
    for seed, epoch in ((4, 1), (3, 2)):
        assert (hidden_patches(seed, epoch, np.arange(200), (4, 4), 0.5) != masks).any()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "resnet8", "widths": (4, 4, 4, 4)}, "vision transformers, and the teacher is none"),
        ({"patch": 4, "dim": 6, "depth": 4}, "has 4x4 patches and the teacher 2x2"),
    ],
)
def test_networks_that_do_not_fit_are_told_in_one_line(vitkd, teacher, message):
    with pytest.raises(UserError, match=message):
        rehearse(plan_of(vitkd, **teacher))
