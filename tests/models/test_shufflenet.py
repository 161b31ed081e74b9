"""Properties of ShuffleNets; counts, precisions and the comparison with NumPy are in test_networks.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.errors import UserError
from kdjax.interop.torch_weights import to_state_dict
from kdjax.models.shufflenet import Grouped1x1, SplitBlock, shuffle
from tests.models.numpy_layers import avg_pool, to_nhwc

SHAPE = (3, 9, 12, 3)
V1, V2 = "shufflenetv1", "shufflenetv2"
ARGS = {
    V1: {"widths": (48, 96, 192), "repeats": (2, 1, 1)},
    V2: {"widths": (8, 12, 20, 16), "repeats": (1, 2, 1)},
}
NAMES = ("stem", "stage1", "stage2", "stage3")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def changed(variables, change):
    """Returns the variables with every parameter replaced by change(path, leaf)."""
    params = {path: change(path, leaf) for path, leaf in flat(variables["params"]).items()}
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


def shut(variables, norm):
    """Returns the variables with one BatchNorm whose output is 0."""
    return changed(variables, lambda path, leaf: 0 * leaf if path.startswith(f"{norm}/") else leaf)


def parameter(generator, shape):
    """Returns He-scaled kernels, so that activations keep their size, and other parameters around 1."""
    if len(shape) > 1:
        return generator.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    return generator.normal(0.8, 0.5, shape)


def drawn(name):
    """Returns a float64 network: (module, variables, images, function (variables, images) -> output)."""
    module = models.create_model(name, 5, **ARGS[name])
    generator = np.random.default_rng(0)
    shapes = models.variable_shapes(module, SHAPE)
    variables = jax.tree.map(lambda leaf: parameter(generator, leaf.shape), shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: abs(leaf) + 0.2, variables["batch_stats"])
    call = jax.jit(lambda v, x: models.call(module, v, x, train=False)[0])
    return module, variables, generator.normal(size=SHAPE), call


@pytest.fixture(scope="module")
def networks():
    with jax.enable_x64(True):
        yield {name: drawn(name) for name in (V1, V2)}


def shapes_of(module, shape):
    variables = models.variable_shapes(module, shape)
    return jax.eval_shape(lambda v, x: module.apply(v, x), variables, jax.ShapeDtypeStruct(shape, np.float32))


def test_shuffle_interleaves_the_groups():
    assert list(shuffle(jnp.arange(6), 2)) == [0, 3, 1, 4, 2, 5]
    assert list(shuffle(jnp.arange(6), 3)) == [0, 2, 4, 1, 3, 5]
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 12))
    with jax.enable_x64(True):
        for groups in (1, 2, 3, 12):
            np.testing.assert_array_equal(shuffle(shuffle(x, groups), 12 // groups), x)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_grouped_product_is_a_grouped_convolution(groups):
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        x, kernel = generator.normal(size=(2, 5, 4, 6)), generator.normal(size=(1, 1, 6 // groups, 9))
        layers = Grouped1x1(9, groups), nn.Conv(9, (1, 1), use_bias=False, feature_group_count=groups)
        (out, pull), (expected, pull_expected) = (
            jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel) for layer in layers
        )
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        gradient = generator.normal(size=out.shape)
        for one, other in zip(pull(gradient), pull_expected(gradient), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [V1, V2])
def test_without_shifts_the_body_grows_with_its_images(networks, name):
    _, variables, images, call = networks[name]
    plain = changed(variables, lambda path, leaf: 0 * leaf if path.endswith("bias") else leaf)
    stats = {path: 0 * leaf if path.endswith("mean") else leaf for path, leaf in flat(variables["batch_stats"]).items()}
    plain["batch_stats"] = traverse_util.unflatten_dict(stats, sep="/")
    once, often = call(plain, images), call(plain, 1e6 * images)
    for before, after in zip(jax.tree.leaves(once), jax.tree.leaves(often), strict=True):
        np.testing.assert_allclose(after, 1e6 * before, rtol=1e-9, atol=1e-9 * np.abs(after).max())


@pytest.mark.parametrize("name", [V1, V2])
def test_features(networks, name):
    module, variables, images, call = networks[name]
    output = call(variables, images)
    final = {"final_preact"} if name == V2 else set()
    assert set(output.features) == {f"{stage}{end}" for stage in NAMES for end in ("", "_preact")} | final
    assert module.preact_norms() == {}  # RepDistiller refuses both as OFD's teacher
    assert all(np.any(output.features[f"{stage}_preact"] < 0) for stage in NAMES)


def test_the_first_networks_features_are_the_relu_of_their_pre_activations(networks):
    _, variables, images, call = networks[V1]
    output = call(variables, images)
    for stage in NAMES:
        np.testing.assert_array_equal(output.features[stage], np.maximum(output.features[f"{stage}_preact"], 0))
    np.testing.assert_allclose(output.pooled, np.asarray(output.features["stage3"]).mean(axis=(1, 2)), rtol=1e-12)


def test_a_unit_of_stride_2_ends_in_its_pooled_input_with_the_padding_counted(networks):
    _, variables, images, call = networks[V1]
    features = call(variables, images).features
    for stage, before in (("stage2", "stage1"), ("stage3", "stage2")):  # of one unit each
        pooled = to_nhwc(avg_pool(np.moveaxis(np.asarray(features[before]), -1, 1), 3, 2, 1))
        carried = features[f"{stage}_preact"][..., -pooled.shape[-1] :]
        np.testing.assert_allclose(carried, pooled, rtol=1e-12, atol=1e-12)


def test_a_unit_of_stride_1_adds_to_its_input(networks):
    _, variables, images, call = networks[V1]
    open_, closed = call(variables, images), call(shut(variables, "stage1_block2/bn3"), images)
    block1 = closed.features["stage1_preact"]  # the input, which a ReLU has gone over
    assert np.all(block1 >= 0)
    np.testing.assert_array_equal(closed.features["stage1"], block1)
    assert np.any(open_.features["stage1_preact"] < 0)
    bias = flat(variables["params"])["stage1_block2/bn3/bias"]
    only_bias = changed(variables, lambda p, leaf: 0 * leaf if p == "stage1_block2/bn3/scale" else leaf)
    np.testing.assert_allclose(call(only_bias, images).features["stage1_preact"], block1 + bias, rtol=1e-12)


def test_the_second_networks_features_are_their_pre_activations_half_of_them_after_relu_shuffled(networks):
    _, variables, images, call = networks[V2]
    features = call(variables, images).features
    for stage in NAMES[1:]:
        kept, new = np.split(np.asarray(features[f"{stage}_preact"]), 2, axis=-1)
        assert np.all(kept >= 0) and np.any(new < 0)
        np.testing.assert_array_equal(features[stage][..., 0::2], kept)
        np.testing.assert_array_equal(features[stage][..., 1::2], np.maximum(new, 0))


def test_half_of_the_channels_pass_a_unit_of_the_second_by(networks):
    _, variables, images, call = networks[V2]
    before, after = (call(v, images).features for v in (variables, shut(variables, "stage3_block2/bn3")))
    np.testing.assert_array_equal(after["stage3"][..., 0::2], before["stage3"][..., 0::2])
    np.testing.assert_array_equal(after["stage3"][..., 1::2], 0)


def test_the_first_half_is_the_one_that_passes_by():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype(np.float32)
    _, preact = SplitBlock().apply(SplitBlock().init(jax.random.key(0), x), x)
    np.testing.assert_array_equal(preact[..., :3], x[..., :3])


def test_names_in_pytorch(networks):
    for name in (V1, V2):
        module, variables, _, _ = networks[name]
        state, params = to_state_dict(module, variables), flat(variables["params"])
        np.testing.assert_array_equal(state["bn1.weight"], params["stem_bn/scale"])
        np.testing.assert_array_equal(state["layer1.1.bn3.bias"], params["stage1_block2/bn3/bias"])
        np.testing.assert_array_equal(state["linear.bias"], params["fc/bias"])
    assert state["conv2.weight"].shape == (16, 20, 1, 1)
    assert state["layer3.0.conv4.weight"].shape == (10, 1, 3, 3)
    state = to_state_dict(*networks[V1][:2])
    assert state["layer1.0.conv1.weight"].shape == (6, 24, 1, 1)  # the one convolution that is not grouped
    assert state["layer1.1.conv1.weight"].shape == (12, 16, 1, 1)
    assert state["layer2.0.conv3.weight"].shape == (48, 4, 1, 1)  # the other half of its 96 channels is the shortcut


@pytest.mark.parametrize(("name", "widths"), [(V1, (24, 240, 480, 960)), (V2, (24, 116, 232, 464))])
def test_shapes_of_the_papers_code(name, widths):
    output = shapes_of(models.create_model(name, 100), (2, 32, 32, 3))
    for stage, side, width in zip(NAMES, (32, 16, 8, 4), widths, strict=True):
        for end in ("", "_preact"):
            assert output.features[f"{stage}{end}"].shape == (2, side, side, width)
    assert output.pooled.shape == (2, {V1: 960, V2: 1024}[name])


def test_parameters_of_the_half_size():
    module = models.create_model(V2, 100, widths=(48, 96, 192, 1024))
    counted = models.count_parameters(models.variable_shapes(module, (1, 32, 32, 3)))
    assert counted == 443_716  # RepDistiller's ShuffleNetV2(net_size=0.5), instantiated


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(1, 1, 1, 2), (21, 10, 4, 200)])
def test_any_size_channels_and_classes(name, height, width, channels, classes):
    output = shapes_of(models.create_model(name, classes), (2, height, width, channels))
    assert output.logits.shape == (2, classes)
    for i, stage in enumerate(NAMES):
        assert output.features[stage].shape[1:3] == (-(-height // 2**i), -(-width // 2**i))


@pytest.mark.parametrize("name", [V1, V2])
def test_initial_weights_are_pytorchs(name):
    params = flat(models.init_variables(models.create_model(name, 100), (1, 32, 32, 3), 0)["params"])
    for path, leaf in params.items():
        if path.endswith("kernel"):
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))  # the inputs of one group
            assert 0.9 * bound < np.abs(leaf).max() <= bound, path


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (V1, {"groups": 0}, "groups must be a whole number"),
        (V1, {"groups": -3}, "groups must be a whole number"),
        (V1, {"groups": 1.5}, "groups must be an integer, not 1.5"),
        (V1, {"groups": 5, "widths": (45,), "repeats": (1,)}, "cannot be split into"),  # 45 - 24 into 5 groups
        (V1, {"groups": 4, "widths": (40,), "repeats": (2,)}, "cannot be split into"),  # 40 / 4 into 4 groups
        (V1, {"groups": 3, "widths": (27,), "repeats": (1,)}, "cannot be split into"),  # (27 - 24) / 4: none
        (V2, {"widths": (116, 232, 464, 0)}, "the last width must be a positive"),
        (V2, {"widths": (116, 232, 464, 10.5)}, "widths must be a list whose items are each an integer"),
    ],
)
def test_a_bad_field_is_answered_in_one_line(name, args, message):
    with pytest.raises(UserError, match=message):
        models.create_model(name, 5, **args)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("groups", [pytest.param(groups, marks=pytest.mark.slow) for groups in (1, 2, 4)] + [3, 5])
def test_what_is_not_refused_can_be_built(groups, repeats):
    built = 0
    for width in range(25, 70):
        try:
            module = models.create_model(V1, 5, groups=groups, widths=(width,), repeats=(repeats,))
        except UserError:
            continue
        models.variable_shapes(module, (1, 4, 4, 3))
        built += 1
    assert built or groups > 3  # beside a shortcut of 24 channels no width goes with 5, nor with 4 and more units
