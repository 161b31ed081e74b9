"""Properties of wide ResNets; counts, precisions and the comparison with NumPy are in test_networks.py."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.interop.torch_weights import to_state_dict

SHAPE = (3, 8, 8, 3)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def changed(variables, pattern, value):
    """Returns the variables with every parameter whose path ends in `pattern` set to a constant."""
    params = {
        path: np.full_like(leaf, value) if path.endswith(pattern) else leaf
        for path, leaf in flat(variables["params"]).items()
    }
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


@pytest.fixture(scope="module")
def network():
    """A float64 network of one block a stage, with a function (variables, images, train) -> (output, statistics)."""
    with jax.enable_x64(True):
        module = models.create_model("wrn", 5, depth=10, width=1)
        generator = np.random.default_rng(0)
        shapes = models.variable_shapes(module, SHAPE)
        variables = jax.tree.map(lambda leaf: generator.uniform(-0.5, 0.5, leaf.shape), shapes)
        variables["batch_stats"] = jax.tree.map(lambda leaf: abs(leaf) + 0.5, variables["batch_stats"])
        call = jax.jit(lambda v, x, train: models.call(module, v, x, train=train), static_argnums=2)
        yield module, variables, generator.normal(size=SHAPE), call


def normalise(x, variables, path):
    params, stats = (flat(variables[name]) for name in ("params", "batch_stats"))
    centred = (x - stats[f"{path}/mean"]) / np.sqrt(stats[f"{path}/var"] + 1e-5)
    return centred * params[f"{path}/scale"] + params[f"{path}/bias"]


def test_a_pre_activation_is_the_named_norm_of_the_raw_feature(network):
    module, variables, images, call = network
    output, _ = call(variables, images, False)
    assert set(output.features) == {"stem"} | {f"stage{i}{end}" for i in (1, 2, 3) for end in ("", "_preact")}
    for stage, path in module.preact_norms().items():
        assert np.any(output.features[stage] < 0)  # no ReLU has been applied
        expected = normalise(np.asarray(output.features[stage]), variables, path)
        np.testing.assert_allclose(output.features[f"{stage}_preact"], expected, rtol=1e-9, atol=1e-9)
    last = np.maximum(output.features["stage3_preact"], 0)
    np.testing.assert_allclose(output.pooled, last.mean(axis=(1, 2)), rtol=1e-9)


def test_a_block_of_unchanged_width_adds_to_its_raw_input(network):
    _, variables, images, call = network
    output, _ = call(changed(variables, "stage1_block1/conv2/kernel", 0), images, False)
    np.testing.assert_array_equal(output.features["stage1"], output.features["stem"])


def test_the_shortcut_of_a_changed_width_reads_the_first_norm(network):
    _, variables, images, call = network
    shut = changed(changed(variables, "stage2_block1/bn1/scale", 0), "stage2_block1/bn1/bias", -1)
    output, _ = call(changed(shut, "stage2_block1/conv2/kernel", 0), images, False)
    assert np.any(output.features["stage1"])
    np.testing.assert_array_equal(output.features["stage2"], 0)


def test_a_training_step_moves_each_statistic_once(network):
    module, variables, images, call = network
    output, stats = call(variables, images, True)
    for stage, path in module.preact_norms().items():
        old = flat(variables["batch_stats"])[f"{path}/mean"]
        batch = np.asarray(output.features[stage]).mean(axis=(0, 1, 2))
        np.testing.assert_allclose(flat(stats)[f"{path}/mean"], 0.9 * old + 0.1 * batch, rtol=1e-9, atol=1e-12)


def test_names_in_pytorch(network):
    module, variables, _, _ = network
    state = to_state_dict(module, variables)
    wanted = {"stage1": "block2.layer.0.bn1", "stage2": "block3.layer.0.bn1", "stage3": "bn1"}
    for stage, path in module.preact_norms().items():
        np.testing.assert_array_equal(state[f"{wanted[stage]}.weight"], flat(variables["params"])[f"{path}/scale"])
    shortcuts = {name for name in state if "convShortcut" in name}
    assert shortcuts == {f"block{stage}.layer.0.convShortcut.weight" for stage in (2, 3)}  # stage 1 keeps 16 channels


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_depth_counts_the_convolutions(depth):
    module = models.create_model("wrn", 5, depth=depth, width=2)
    kernels = [leaf for leaf in jax.tree.leaves(models.variable_shapes(module, SHAPE)["params"]) if leaf.ndim == 4]
    assert len(kernels) == depth


@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(1, 1, 1, 2), (9, 14, 4, 3), (64, 64, 3, 200)])
def test_any_size_channels_and_classes(height, width, channels, classes):
    module = models.create_model("wrn_16_2", classes)
    images = jax.ShapeDtypeStruct((2, height, width, channels), np.float32)
    variables = models.variable_shapes(module, images.shape)
    output = jax.eval_shape(lambda v, x: module.apply(v, x), variables, images)
    assert output.logits.shape == (2, classes)
    assert output.pooled.shape == (2, 128)
    for i, channels in enumerate((32, 64, 128)):
        sides = tuple(-(-side // 2**i) for side in (height, width))
        shapes = {output.features[f"stage{i + 1}{end}"].shape for end in ("", "_preact")}
        assert shapes == {(2, *sides, channels)}


def test_initial_weights():
    params = flat(models.init_variables(models.create_model("wrn_16_2", 100), (1, 32, 32, 3), 0)["params"])
    for path, leaf in params.items():
        if leaf.ndim == 4:  # N(0, 2 / (k² out)), the 1x1 shortcuts as well
            expected = np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3]))
            assert abs(leaf.std() / expected - 1) < 5 / np.sqrt(2 * leaf.size), path
    bound = 1 / np.sqrt(128)
    assert 0.95 * bound < abs(params["fc/kernel"]).max() <= bound
    np.testing.assert_array_equal(params["fc/bias"], 0)
