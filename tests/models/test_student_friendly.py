"""Student-shaped branches: what they compute, what they leave alone, and which networks have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError

PAIRS = (("resnet14", "resnet8"), ("wrn_40_1", "wrn_16_1"))


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair[1])
def pair(request):
    network, student = request.param
    module = models.create_model("sftn", 5, body=network, student=student)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = models.init_variables(module, images.shape, 3)
    return network, student, variables, images, models.call(module, variables, images, train=False)[0]


def part(variables, name):
    return {collection: leaves[name] for collection, leaves in variables.items()}


def test_the_network_is_as_it_is_without_branches(pair):
    network, _, variables, images, output = pair
    alone = models.call(models.create_model(network, 5), part(variables, "body"), images, train=False)[0]
    np.testing.assert_array_equal(output.logits, alone.logits)
    np.testing.assert_array_equal(output.pooled, alone.pooled)
    assert [name for name in output.features if name not in alone.features] == ["branch1", "branch2"]


def test_a_branch_is_a_projection_and_the_rest_of_the_student(pair):
    """The whole student, whose map after stage 2 is replaced by the projected one, gives the branch's logits."""
    _, student, variables, images, output = pair
    module = models.create_model(student, 5)
    kernel = variables["params"]["branch2_conv"]["kernel"][0, 0]
    projected = jnp.asarray(output.features["stage2"]) @ kernel
    scale, bias = (variables["params"]["branch2_bn"][name] for name in ("scale", "bias"))
    mean, var = (variables["batch_stats"]["branch2_bn"][name] for name in ("mean", "var"))
    entered = jax.nn.relu((projected - mean) / np.sqrt(var + 1e-5) * scale + bias)
    whole = models.init_variables(module, images.shape, 1)
    merged = jax.tree.map(lambda leaf: leaf, {c: {**whole[c], **part(variables, "branch2_student")[c]} for c in whole})
    replaced = module.apply(merged, entered, train=False, after=2).logits
    np.testing.assert_allclose(output.features["branch2"], replaced, rtol=1e-4, atol=1e-5)
    assert "stem" not in variables["params"]["branch2_student"]


def test_branches_are_drawn_as_the_student_is(pair):
    """Its 3x3 convolutions are normal with a variance of 2 / fan_out, where PyTorch's default has 1 / (3 fan_in)."""
    _, _, variables, _, _ = pair
    kernel = np.asarray(variables["params"]["branch1_student"]["stage3_block1"]["conv2"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * kernel.shape[-1])), rel=0.03)


def test_entering_a_network_after_a_stage_goes_on_from_its_map(pair):
    network, _, variables, images, output = pair
    module = models.create_model(network, 5)
    for stage in (1, 2):
        entered = module.apply(part(variables, "body"), output.features[f"stage{stage}"], train=False, after=stage)
        np.testing.assert_allclose(entered.logits, output.logits, rtol=1e-5, atol=1e-6)
        assert "stem" not in entered.features and f"stage{stage}" not in entered.features


@pytest.mark.parametrize("network, student", [("resnet8", "mlp"), ("vgg8", "resnet8")])
def test_a_network_that_cannot_be_entered_is_one_line(network, student):
    module = models.create_model("sftn", 5, body=network, student=student)
    with pytest.raises(UserError, match="has no branches: they are built for the resnets of CIFAR and for wrn"):
        models.init_variables(module, (1, 8, 8, 3), 0)
