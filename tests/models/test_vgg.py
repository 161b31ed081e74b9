"""Properties of VGG; counts, precisions and the comparison with NumPy are in test_networks.py."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.errors import UserError
from kdjax.interop.torch_weights import to_state_dict

SHAPE = (3, 8, 8, 3)
WIDTHS = (4, 6, 8, 10, 12)
NAMES = ("stem", "stage1", "stage2", "stage3", "stage4")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def network():
    """A narrow float64 vgg11, with a function (variables, images, train) -> (output, statistics)."""
    with jax.enable_x64(True):
        module = models.create_model("vgg11", 5, widths=WIDTHS)
        generator = np.random.default_rng(0)
        shapes = models.variable_shapes(module, SHAPE)
        variables = jax.tree.map(lambda leaf: generator.uniform(-0.4, 0.6, leaf.shape), shapes)
        variables["batch_stats"] = jax.tree.map(lambda leaf: abs(leaf) + 0.5, variables["batch_stats"])
        call = jax.jit(lambda v, x, train: models.call(module, v, x, train=train), static_argnums=2)
        yield module, variables, generator.normal(size=SHAPE), call


def shapes_of(module, shape):
    variables = models.variable_shapes(module, shape)
    return jax.eval_shape(lambda v, x: module.apply(v, x), variables, jax.ShapeDtypeStruct(shape, np.float32))


def test_a_feature_is_the_relu_of_its_pre_activation(network):
    _, variables, images, call = network
    output, _ = call(variables, images, False)
    assert set(output.features) == {f"{name}{end}" for name in NAMES for end in ("", "_preact")}
    for name in NAMES:
        preact = np.asarray(output.features[f"{name}_preact"])
        assert np.any(preact < 0)
        np.testing.assert_array_equal(output.features[name], np.maximum(preact, 0))
    np.testing.assert_allclose(output.pooled, np.asarray(output.features["stage4"]).mean(axis=(1, 2)), rtol=1e-12)


def test_in_training_the_convolutions_biases_move_nothing_but_the_running_means(network):
    _, variables, images, call = network
    params = flat(variables["params"])
    moved = {path: leaf + 0.7 if "_conv" in path and path.endswith("bias") else leaf for path, leaf in params.items()}
    moved = {**variables, "params": traverse_util.unflatten_dict(moved, sep="/")}
    (before, old), (after, new) = (call(v, images, True) for v in (variables, moved))
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-8, atol=1e-8)
    for path, leaf in flat(new).items():
        shift = 0.07 if path.endswith("mean") else 0  # a tenth of 0.7
        np.testing.assert_allclose(leaf, flat(old)[path] + shift, rtol=1e-8, atol=1e-8, err_msg=path)


def test_names_in_pytorch(network):
    module, variables, _, _ = network
    state = to_state_dict(module, variables)
    wanted = {"stage1": "block1.1", "stage2": "block2.4", "stage3": "block3.4", "stage4": "block4.4"}
    assert module.preact_norms().keys() == wanted.keys()
    for stage, path in module.preact_norms().items():
        np.testing.assert_array_equal(state[f"{wanted[stage]}.weight"], flat(variables["params"])[f"{path}/scale"])
    assert state["block2.3.bias"].shape == (8,)  # the convolutions keep their bias
    assert state["classifier.weight"].shape == (5, 12)


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_depth_counts_three_linear_layers_of_which_one_is_left(depth):
    module = models.create_model(f"vgg{depth}", 5, widths=WIDTHS)
    kernels = [leaf for leaf in jax.tree.leaves(models.variable_shapes(module, SHAPE)["params"]) if leaf.ndim == 4]
    assert len(kernels) == depth - 3


@pytest.mark.parametrize(
    ("side", "sides"),
    [(8, (8, 4, 2, 1, 1)), (32, (32, 16, 8, 4, 4)), (48, (48, 24, 12, 6, 6)), (64, (64, 32, 16, 8, 4))],
)
def test_a_fourth_pooling_only_at_64_pixels(side, sides):
    output = shapes_of(models.create_model("vgg8", 5, widths=WIDTHS), (2, side, side, 3))
    for name, expected, width in zip(NAMES, sides, WIDTHS, strict=True):
        for end in ("", "_preact"):
            assert output.features[f"{name}{end}"].shape == (2, expected, expected, width)
    assert output.pooled.shape == (2, WIDTHS[-1])


def test_any_size_channels_and_classes():
    output = shapes_of(models.create_model("vgg13", 200), (2, 21, 9, 1))
    assert output.logits.shape == (2, 200)
    assert output.features["stage4"].shape == (2, 2, 1, 512)


@pytest.mark.parametrize(("shape", "least"), [((2, 7, 32, 3), 8), ((2, 64, 15, 3), 16)])
def test_images_of_which_pooling_would_leave_nothing_are_refused(shape, least):
    with pytest.raises(UserError, match=f"images of at least {least} pixels a side"):
        shapes_of(models.create_model("vgg8", 5), shape)


def test_initial_weights():
    params = flat(models.init_variables(models.create_model("vgg8", 100), (1, 32, 32, 3), 0)["params"])
    for path, leaf in params.items():
        if path.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif path.endswith("kernel"):  # convolutions N(0, 2 / (9 out)), the classifier N(0, 0.01²)
            expected = 0.01 if path == "fc/kernel" else np.sqrt(2 / (9 * leaf.shape[3]))
            assert abs(leaf.std() / expected - 1) < 5 / np.sqrt(2 * leaf.size), path
