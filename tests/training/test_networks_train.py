"""Every network trains in float32 and bfloat16; drop-path draws the same on any number of devices."""

import jax
import numpy as np
import pytest
from small_world import largest_difference, make_plan, run_steps

from kdjax import models

# One small member of each family, which differs from the full networks in size alone.
FAMILIES = {
    "resnet8": {"widths": (4, 4, 6, 8)},
    "wrn": {"depth": 10, "width": 1},
    "vgg8": {"widths": (4, 4, 6, 6, 8)},
    "mobilenetv2_half": {"width": 0.125},
    "mobilenetv1": {},
    "shufflenetv1": {"repeats": (2, 1, 2), "widths": (48, 96, 192)},
    "shufflenetv2": {"repeats": (1, 1, 1), "widths": (8, 16, 32, 32)},
    "resnet18": {"width": 0.0625},
    "resnet50_cifar": {"width": 0.0625},
    "densenet100_bc": {"depth": 16, "growth": 4},
    "deit_tiny": {"patch": 4, "dim": 12, "depth": 4, "drop_path": 0.2},
}


@pytest.fixture
def own(config):
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    return config


def assert_trains(config, name, args, dtype):
    config.model.name, config.model.args, config.model.dtype = name, args, dtype
    state, sums = run_steps(config, 2, 3)
    assert np.isfinite(sums.metrics["loss"][0]) and state.step == 3
    start = models.init_variables(models.create_model(name, 4, **args), (1, 8, 8, 3), config.seed)["params"]
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert largest_difference(state.params, start) > 1e-4


def test_a_network_with_drop_path_trains_in_bfloat16(own):
    assert_trains(own, "deit_tiny", FAMILIES["deit_tiny"], "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_every_family_trains(own, name, dtype):
    assert_trains(own, name, FAMILIES[name], dtype)


def test_drop_path_draws_the_same_on_one_and_four_devices(own):
    own.model.name, own.model.args = "deit_tiny", FAMILIES["deit_tiny"]
    with jax.enable_x64(True):
        one, four = run_steps(own, 1, 3)[0], run_steps(own, 4, 3)[0]
        own.seed = 1
        other = run_steps(own, 1, 1)[0]
    assert largest_difference(one.params, four.params) < 1e-10
    assert largest_difference(one.params, other.params) > 1e-6


def test_features_of_a_network_of_ones_own_reach_the_run(own, one_device):
    own.model.name, own.model.features = "tests.models.test_feature_extraction:Plain", ("block1", "block2")
    plan = make_plan(own, one_device)
    assert plan.spec.model == models.FeatureExtractor(plan.spec.model.module, ("block1", "block2"))
    state, _ = run_steps(own, 2, 2)
    assert state.step == 2
