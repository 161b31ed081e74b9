"""Properties of MobileNets; counts, precisions and the comparison with NumPy are in test_networks.py."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.errors import UserError
from kdjax.interop.torch_weights import to_state_dict

SHAPE = (2, 16, 16, 3)
V1, V2 = "mobilenetv1", "mobilenetv2_half"
NAMES = ("stem", "stage1", "stage2", "stage3", "stage4")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def changed(variables, change):
    """Returns the variables with every parameter replaced by change(path, leaf)."""
    params = {path: change(path, leaf) for path, leaf in flat(variables["params"]).items()}
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


def parameter(generator, shape):
    """Returns He-scaled kernels, so that activations keep their size, and other parameters around 1."""
    if len(shape) > 1:
        return generator.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    return generator.normal(0.8, 0.5, shape)


def drawn(name, **args):
    """Returns a float64 network: (module, variables, images, function (variables, images) -> output)."""
    module = models.create_model(name, 5, **args)
    generator = np.random.default_rng(0)
    shapes = models.variable_shapes(module, SHAPE)
    variables = jax.tree.map(lambda leaf: parameter(generator, leaf.shape), shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: abs(leaf) + 0.2, variables["batch_stats"])
    call = jax.jit(lambda v, x: models.call(module, v, x, train=False)[0])
    return module, variables, generator.normal(size=SHAPE), call


@pytest.fixture(scope="module")
def networks():
    """Both networks; V2 has 4 channels in the stem and 2, 3, 4, 8, 12, 20, 40 in its groups of blocks."""
    with jax.enable_x64(True):
        yield {V1: drawn(V1), V2: drawn(V2, width=0.125)}


def shapes_of(module, shape):
    variables = models.variable_shapes(module, shape)
    return jax.eval_shape(lambda v, x: module.apply(v, x), variables, jax.ShapeDtypeStruct(shape, np.float32))


@pytest.mark.parametrize("name", [V1, V2])
def test_without_shifts_the_body_grows_with_its_images(networks, name):
    _, variables, images, call = networks[name]
    plain = changed(variables, lambda path, leaf: 0 * leaf if path.endswith("bias") else leaf)
    stats = {path: 0 * leaf if path.endswith("mean") else leaf for path, leaf in flat(variables["batch_stats"]).items()}
    plain["batch_stats"] = traverse_util.unflatten_dict(stats, sep="/")
    once, often = call(plain, images), call(plain, 1e6 * images)
    for before, after in zip(jax.tree.leaves(once), jax.tree.leaves(often), strict=True):  # ReLU6 would stop at 6
        np.testing.assert_allclose(after, 1e6 * before, rtol=1e-9, atol=1e-9 * np.abs(after).max())
    assert all(np.abs(feature).max() > 6 for feature in often.features.values())


def test_stages_of_the_first_are_the_relu_of_their_pre_activations(networks):
    _, variables, images, call = networks[V1]
    output = call(variables, images)
    assert set(output.features) == {f"{name}{end}" for name in NAMES for end in ("", "_preact")}
    for name in NAMES:
        preact = np.asarray(output.features[f"{name}_preact"])
        assert np.any(preact < 0)
        np.testing.assert_array_equal(output.features[name], np.maximum(preact, 0))
    np.testing.assert_allclose(output.pooled, np.asarray(output.features["stage4"]).mean(axis=(1, 2)), rtol=1e-12)


def test_stages_of_the_second_are_linear(networks):
    _, variables, images, call = networks[V2]
    output = call(variables, images)
    assert set(output.features) == {*NAMES, "stem_preact", "final_preact"}
    np.testing.assert_array_equal(output.features["stem"], np.maximum(output.features["stem_preact"], 0))
    for name in NAMES[1:]:
        assert np.any(output.features[name] < 0)


@pytest.mark.parametrize(("name", "end"), [(V1, "_preact"), (V2, "")])
def test_the_named_norms_shift_their_stages(networks, name, end):
    module, variables, images, call = networks[name]
    before = call(variables, images)
    assert tuple(module.preact_norms()) == NAMES[1:]
    for stage, path in module.preact_norms().items():
        shifted = changed(variables, lambda p, leaf: leaf + 0.75 if p == f"{path}/bias" else leaf)
        after = call(shifted, images).features[f"{stage}{end}"]
        np.testing.assert_allclose(after, before.features[f"{stage}{end}"] + 0.75, rtol=1e-9, atol=1e-9)


def test_a_block_that_keeps_its_shape_adds_to_its_input(networks):
    _, variables, images, call = networks[V2]
    output = call(changed(variables, lambda p, leaf: 0 * leaf if p.endswith("project_bn/scale") else leaf), images)
    params = flat(variables["params"])
    # each block is its last norm's bias then; the first of a group, whose shape changes, begins anew
    for stage, blocks in {"stage1": ("2_1", "2_2"), "stage2": ("3_1", "3_2", "3_3"), "stage4": ("7_1",)}.items():
        total = sum(params[f"block{block}/project_bn/bias"] for block in blocks)
        feature = np.asarray(output.features[stage])
        np.testing.assert_allclose(feature, np.broadcast_to(total, feature.shape), rtol=1e-12)


def test_names_in_pytorch(networks):
    wanted = {
        V1: ["model.3.4", "model.5.4", "model.11.4", "model.13.4"],
        V2: ["blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"],
    }
    for name, norms in wanted.items():
        module, variables, _, _ = networks[name]
        state = to_state_dict(module, variables)
        for norm, path in zip(norms, module.preact_norms().values(), strict=True):
            np.testing.assert_array_equal(state[f"{norm}.weight"], flat(variables["params"])[f"{path}/scale"])
    assert state["classifier.0.weight"].shape == (5, 1280)
    assert state["blocks.5.0.conv.3.weight"].shape == (72, 1, 3, 3)  # depthwise, of 6 times 12 channels


@pytest.mark.parametrize(
    ("name", "side", "sides", "widths"),
    [
        (V2, 32, (16, 16, 8, 4, 2), (16, 12, 16, 48, 160)),
        (V2, 64, (32, 32, 16, 8, 4), (16, 12, 16, 48, 160)),
        (V1, 224, (112, 56, 28, 14, 7), (32, 128, 256, 512, 1024)),
    ],
)
def test_shapes_of_the_papers_code(name, side, sides, widths):
    output = shapes_of(models.create_model(name, 100), (2, side, side, 3))
    for stage, expected, width in zip(NAMES, sides, widths, strict=True):
        assert output.features[stage].shape == (2, expected, expected, width)


@pytest.mark.parametrize(("width", "last"), [(0.5, 1280), (1.0, 1280), (1.4, 1792)])
def test_the_last_convolution_grows_with_the_width_but_does_not_shrink(width, last):
    module = models.create_model(V2, 100, width=width)
    assert shapes_of(module, (2, 32, 32, 3)).pooled.shape == (2, last)
    if width == 1.4:  # RepDistiller's MobileNetV2(T=6, width_mult=1.4), instantiated
        assert models.count_parameters(models.variable_shapes(module, (1, 32, 32, 3))) == 4_470_904


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(1, 1, 1, 2), (21, 50, 4, 200)])
def test_any_size_channels_and_classes(name, height, width, channels, classes):
    output = shapes_of(models.create_model(name, classes), (2, height, width, channels))
    assert output.logits.shape == (2, classes)
    assert output.features["stem"].shape[1:3] == (-(-height // 2), -(-width // 2))


def test_initial_weights_of_the_second():
    params = flat(models.init_variables(models.create_model(V2, 100), (1, 32, 32, 3), 0)["params"])
    np.testing.assert_array_equal(params["fc/bias"], 0)
    for path, leaf in params.items():
        if path.endswith("kernel"):  # N(0, 2 / (k² out)), depthwise ones too; the classifier N(0, 0.01²)
            positions = leaf.shape[0] * leaf.shape[1]
            expected = 0.01 if path == "fc/kernel" else np.sqrt(2 / (positions * leaf.shape[3]))
            assert abs(leaf.std() / expected - 1) < 5 / np.sqrt(2 * leaf.size), path


def test_initial_weights_of_the_first_are_pytorchs():
    params = flat(models.init_variables(models.create_model(V1, 100), (1, 32, 32, 3), 0)["params"])
    for path, leaf in params.items():
        if path.endswith("kernel"):
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))  # depthwise: 1 / 3
            assert 0.9 * bound < np.abs(leaf).max() <= bound, path
    assert 0.9 / 32 < np.abs(params["fc/bias"]).max() <= 1 / 32


FACTOR = "width must be a factor of at least 1/16"


@pytest.mark.parametrize(
    "width, words",
    [(0, FACTOR), (float("nan"), FACTOR), (float("inf"), FACTOR), ("0.5", "width must be a number, not '0.5'")],
)
def test_a_bad_width_is_answered_in_one_line(width, words):
    with pytest.raises(UserError, match=words):
        models.create_model(V2, 5, width=width)
