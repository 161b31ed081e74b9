"""Features picked by path from a network that returns logits alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


class Inner(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), name="conv")(x)
        self.sow("intermediates", "sown", x * 2)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))


class Plain(nn.Module):
    """Returns logits alone."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = Inner(4, name="block1")(images, train)
        x = Inner(5, name="block2")(x, train)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


MODULE = Plain(3)
VARIABLES = models.init_variables(MODULE, IMAGES.shape, 0)


def run(train=False, **picked):
    return models.call(models.FeatureExtractor(MODULE, **picked), VARIABLES, IMAGES, train=train)


def test_outputs_of_submodules_come_in_the_order_of_the_config_and_pooled_is_the_mean_of_the_last():
    output, _ = run(features=("block2", "block1"))
    assert list(output.features) == ["block2", "block1"]
    assert [leaf.shape for leaf in output.features.values()] == [(2, 4, 4, 5), (2, 4, 4, 4)]
    np.testing.assert_allclose(output.pooled, output.features["block1"].mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(output.logits, MODULE.apply(VARIABLES, IMAGES))


def test_sown_values_and_deeper_paths():
    output, _ = run(features=("block1/conv", "block1/sown"), pooled="head")
    np.testing.assert_array_equal(output.features["block1/sown"], 2 * output.features["block1/conv"])
    np.testing.assert_array_equal(output.pooled, output.logits)


@pytest.mark.parametrize("train", [False, True])
def test_picking_changes_neither_logits_nor_statistics(train):
    output, stats = run(train, features=("block1", "block2"))
    plain, plain_stats = models.call(MODULE, VARIABLES, IMAGES, train=train)
    np.testing.assert_array_equal(output.logits, plain.logits)
    jax.tree.map(np.testing.assert_array_equal, stats, plain_stats)


def test_gradients_pass_through_what_is_picked():
    def loss(params):
        picked = models.FeatureExtractor(MODULE, ("block1",))
        output, _ = models.call(picked, {**VARIABLES, "params": params}, IMAGES, train=True)
        return jnp.sum(output.features["block1"] ** 2)

    gradient = jax.grad(loss)(VARIABLES["params"])
    assert np.abs(gradient["block1"]["conv"]["kernel"]).max() > 0
    assert np.abs(gradient["block2"]["conv"]["kernel"]).max() == 0


def test_kdjax_features_are_picked_by_their_names():
    module = models.create_model("resnet8", 3)
    variables = models.init_variables(module, IMAGES.shape, 0)
    picked = models.FeatureExtractor(module, ("stage3", "stage1_block1/conv1"))
    output, _ = models.call(picked, variables, IMAGES, train=False)
    plain, _ = models.call(module, variables, IMAGES, train=False)
    np.testing.assert_array_equal(output.features["stage3"], plain.features["stage3"])
    np.testing.assert_array_equal(output.pooled, plain.pooled)  # the network's own


def test_a_path_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError, match="no feature 'block3'.*There are: block1/conv, .*block2"):
        models.check_features(models.FeatureExtractor(MODULE, ("block1", "block3")), IMAGES.shape)
    models.check_features(models.FeatureExtractor(MODULE, ("block1", "block2/sown"), "head"), IMAGES.shape)


def test_description_counts_parameters_features_and_cost():
    found = models.describe(models.FeatureExtractor(MODULE, ("block2",)), (4, 4, 3))
    conv1, conv2, norms, head = 9 * 3 * 4 + 4, 9 * 4 * 5 + 5, 2 * (4 + 5), 5 * 3 + 3
    assert sum(int(np.prod(shape)) for _, shape in found.parameters) == conv1 + conv2 + norms + head
    assert found.statistics == 2 * (4 + 5)
    assert found.features == [("block2", (4, 4, 5))]
    assert ("block1/sown", (4, 4, 4)) in found.inner
    assert found.pooled == (5,)
    exact = 2 * 9 * (3 * 4 + 4 * 5) * 16 + 2 * 5 * 3  # multiply-adds of convolutions and classifier, edges included
    assert 0.5 * exact < found.flops < 1.5 * exact


def test_features_of_a_network_are_described_by_depth():
    found = models.describe(models.create_model("wrn_16_1", 3), (8, 8, 3))
    names = [name for name, _ in found.features if "preact" not in name]
    assert names == ["stem", "stage1", "stage2", "stage3"]
    layers = [path.rpartition("/")[0] for path, _ in found.parameters]
    assert layers[0] == "stem" and layers[-1] == "fc"
