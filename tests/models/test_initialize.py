"""Initial weights: their distributions, and that they are a function of (seed, path) alone."""

import time
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.errors import UserError
from kdjax.models import initialize


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def wide():
    return flat(models.init_variables(models.create_model("resnet8x4", 100), (1, 32, 32, 3), 0))


def test_kernels_are_kaiming_normal_by_fan_out(wide):
    kernels = {path: leaf for path, leaf in wide.items() if leaf.ndim == 4}
    assert len(kernels) == 10
    for path, leaf in kernels.items():
        expected = np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3]))
        spread = 5 * expected / np.sqrt(2 * leaf.size)  # five standard errors of a normal's deviation
        assert abs(leaf.std() - expected) < spread, path
        assert abs(leaf.mean()) < 5 * expected / np.sqrt(leaf.size), path
        if leaf.size > 10_000:
            assert abs(leaf).max() > 3.5 * expected, f"{path}: a normal has tails"


def test_batch_norm_starts_as_the_identity(wide):
    for path, leaf in wide.items():
        if "bn" in path:
            assert np.all(leaf == (1 if path.endswith(("scale", "var")) else 0)), path


LINEAR = [("resnet8x4", "fc", 256), ("mlp", "hidden1", 3072), ("mlp", "fc", 512)]


@pytest.mark.parametrize(("name", "layer", "fan_in"), LINEAR)
def test_linear_layers_are_uniform_by_fan_in(name, layer, fan_in):
    params = models.init_variables(models.create_model(name, 100), (1, 32, 32, 3), 0)["params"]
    bound = 1 / np.sqrt(fan_in)
    for leaf in params[layer].values():
        assert 0.9 * bound < leaf.max() <= bound
        assert -bound <= leaf.min() < -0.9 * bound
        assert abs(leaf.std() - bound / np.sqrt(3)) < 5 * bound / np.sqrt(3 * leaf.size)


def test_same_seed_same_bits_and_another_seed_another_draw():
    module = models.create_model("resnet8", 10)
    first, again, other = (flat(models.init_variables(module, (1, 8, 8, 3), seed)) for seed in (5, 5, 2**32 - 1))
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        if "bn" not in path:
            assert not np.any(first[path] == other[path]), path


def test_a_leaf_depends_on_its_seed_path_and_shape_only():
    networks = (models.create_model(name, 10) for name in ("resnet8", "resnet14"))
    shallow, deep = (flat(models.init_variables(module, (1, 8, 8, 3), 1)) for module in networks)
    assert set(shallow) < set(deep)
    for path, leaf in shallow.items():
        np.testing.assert_array_equal(leaf, deep[path])
    assert not np.any(deep["params/stage1_block1/conv1/kernel"] == deep["params/stage1_block2/conv1/kernel"])


def test_a_leaf_restated():
    leaf = models.init_variables(models.create_model("mlp", 3, hidden=(4,)), (1, 9), 7)["params"]["hidden1"]["kernel"]
    bits = np.random.Philox(key=np.array([7, zlib.crc32(b"params/hidden1/kernel")], np.uint64))
    expected = np.random.Generator(bits).uniform(-1 / 3, 1 / 3, (9, 4))
    np.testing.assert_array_equal(leaf, expected.astype(np.float32))


def test_float32_is_the_cast_of_float64():
    module = models.create_model("resnet8", 10)
    low = models.init_variables(module, (1, 8, 8, 3), 0)
    with jax.enable_x64(True):
        high = models.init_variables(module, (1, 8, 8, 3), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(high)} == {np.dtype("float64")}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), low, high)


def test_nothing_is_compiled_for_a_deep_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("initialising compiled something")

    monkeypatch.setattr(initialize.jax, "jit", refuse)
    start = time.perf_counter()
    models.init_variables(models.create_model("resnet110", 100), (1, 32, 32, 3), 0)
    assert time.perf_counter() - start < 10  # 0.3 s alone on a laptop's core; jit would take 12 s and more


class OwnInit(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(images)
        self.sow("intermediates", "x", x)
        kernel_init, bias_init = nn.initializers.constant(0.25), nn.initializers.normal()
        return nn.Dense(self.num_classes, kernel_init=kernel_init, bias_init=bias_init)(x)


class Stateful(OwnInit):
    @nn.compact
    def __call__(self, images):
        self.variable("memory", "bank", lambda: np.zeros(3))
        return nn.Dense(self.num_classes)(images)


class Unlisted(OwnInit):
    INITIALIZERS = ((r".*/kernel", initialize.torch_linear),)


def test_a_users_network_is_initialised_by_itself():
    first, again, other = (models.init_variables(OwnInit(4), (1, 5), seed) for seed in (0, 0, 2**32 - 1))
    assert set(first) == {"params", "batch_stats"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(first))
    assert np.all(first["params"]["Dense_0"]["kernel"] == 0.25)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first["params"]["Dense_0"]["bias"] != other["params"]["Dense_0"]["bias"])


@pytest.mark.parametrize(("module", "says"), [(Stateful(4), "'memory'"), (Unlisted(4), "Dense_0/bias")])
def test_what_cannot_be_initialised_is_said_in_one_line(module, says):
    with pytest.raises(UserError) as excinfo:
        models.init_variables(module, (1, 5), 0)
    assert says in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_the_torch_scheme_draws_within_one_over_the_root_of_fan_in():
    module = models.create_model("vgg8", 5, widths=(8, 8, 8, 8, 8))
    variables = models.init_variables(module, (1, 32, 32, 3), 0, "torch")
    kernel, bias = (variables["params"]["stage1_conv1"][leaf] for leaf in ("kernel", "bias"))
    bound = 1 / np.sqrt(9 * 8)
    for leaf in (kernel, bias):
        assert np.abs(leaf).max() <= bound and np.abs(leaf).max() > 0.5 * bound
    assert abs(kernel.std() - bound / np.sqrt(3)) < 0.1 * bound
    np.testing.assert_array_equal(variables["params"]["stage1_bn1"]["scale"], 1)
    np.testing.assert_array_equal(variables["params"]["stage1_bn1"]["bias"], 0)
    token = models.create_model("deit_tiny", 5, patch=4, dim=12, depth=4)
    assert 0 < models.init_variables(token, (1, 8, 8, 3), 0, "torch")["params"]["pos_embed"].std() < 0.03


def test_the_flax_scheme_is_the_networks_own_init():
    module = models.create_model("resnet8", 5, widths=(4, 4, 4, 4))
    variables = models.init_variables(module, (1, 8, 8, 3), 3, "flax")
    expected = jax.jit(module.init)(jax.random.key(3), np.zeros((1, 8, 8, 3), np.float32))
    jax.tree.map(np.testing.assert_array_equal, variables, dict(expected))
