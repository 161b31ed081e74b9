"""Auxiliary classifiers on any network of stages: a branch is the layers after its stage, with weights of its own."""

import jax
import numpy as np
import pytest
from four_layers import FourLayers

from kdjax import models
from kdjax.config import WRAPPERS
from kdjax.errors import UserError
from kdjax.interop.torch_weights import from_state_dict, to_state_dict

BODY = {"body": "four_layers:FourLayers"}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def test_the_two_lists_of_wrappers_are_one():
    assert models.WRAPPERS == WRAPPERS


def test_a_branch_continues_from_its_stage():
    """The branch on stage 1 of the body, given the body's own weights, makes the body's logits of each rotation."""
    module = models.create_model("aux", 4, **BODY)
    variables = models.init_variables(module, (1, 8, 8, 3), 0)
    params, stats = variables["params"], variables["batch_stats"]
    assert set(params["branch1"]) == {"conv2", "bn2", "conv3", "bn3", "fc"}
    assert set(params["branch2"]) == {"conv3", "bn3", "fc"}
    assert {name for name in params if name.startswith("branch3")} == {"branch3_conv", "branch3_bn", "branch3_fc"}
    for layer in ("conv2", "bn2", "conv3", "bn3"):
        params["branch1"][layer] = params["body"][layer]
        if layer in stats["body"]:
            stats["branch1"][layer] = stats["body"][layer]
    params["branch1"]["fc"] = {  # class k and rotation j at 4 k + j
        "kernel": np.repeat(params["body"]["fc"]["kernel"], 4, axis=1),
        "bias": np.repeat(params["body"]["fc"]["bias"], 4),
    }
    output, _ = models.call(module, variables, IMAGES, train=False)
    plain = {"params": params["body"], "batch_stats": stats["body"]}
    for turns in range(4):
        alone, _ = models.call(FourLayers(4), plain, np.rot90(IMAGES, turns, (1, 2)).copy(), train=False)
        np.testing.assert_allclose(output.features["rotated"][:, turns], alone.logits, rtol=1e-5, atol=1e-6)
        joint = np.asarray(output.features["auxiliary1"][:, turns]).reshape(2, 4, 4)
        np.testing.assert_allclose(joint, np.repeat(alone.logits[:, :, None], 4, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.logits, output.features["rotated"][:, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "args", "branches"),
    [
        ("wrn_16_1", {}, 3),
        ("vgg8", {"widths": (4, 6, 8, 10, 6)}, 4),
        pytest.param("mobilenetv2_half", {}, 4, marks=pytest.mark.slow),
        ("shufflenetv1", {"repeats": (2, 1, 2)}, 3),
        pytest.param("shufflenetv2", {"repeats": (1, 2, 1)}, 3, marks=pytest.mark.slow),
        pytest.param("resnet50_cifar", {"width": 0.125}, 4, marks=pytest.mark.slow),
        pytest.param("densenet100_bc", {"depth": 22, "growth": 6}, 3, marks=pytest.mark.slow),
        ("resnet14", {}, 3),
    ],
)
def test_every_family_of_cifar_has_branches(body, args, branches):
    """Only shapes are traced; each branch has fewer layers than the one before, and training gives the same shapes."""
    module = models.create_model("aux", 5, body=body, body_args=args)
    variables = models.variable_shapes(module, (1, 32, 32, 3))
    shapes = [
        jax.eval_shape(lambda v, x, train=train: models.call(module, v, x, train=train)[0].features, variables, image)
        for train in (False, True)
        for image in [jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)]
    ]
    for features in shapes:
        assert features["rotated"].shape == (2, 4, 5)
        assert [features[f"auxiliary{i}"].shape for i in range(1, branches + 1)] == branches * [(2, 4, 20)]
        assert f"auxiliary{branches + 1}" not in features
    sizes = [
        len(jax.tree.leaves(variables["params"][part]))
        for part in ("body", *(f"branch{i}" for i in range(1, branches)))
    ]
    assert sizes == sorted(set(sizes), reverse=True)


def test_it_exports_and_imports():
    module = models.create_model("aux", 4, **BODY)
    variables = models.init_variables(module, (1, 8, 8, 3), 0)
    again = from_state_dict("aux", to_state_dict(module, variables), **BODY)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_what_has_no_stages_is_told_in_one_line():
    with pytest.raises(UserError, match="puts classifiers on stages, and MLP has no map"):
        models.variable_shapes(models.create_model("aux", 4, body="mlp", body_args={"hidden": (4,)}), (1, 8, 8, 3))
    with pytest.raises(UserError, match="cannot be aux itself"):
        models.create_model("aux", 4, body="aux")
