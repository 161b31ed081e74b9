"""The table MODELS: parameter counts, shapes, names and error messages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError


class TinyNet(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))


def one_line(excinfo):
    text = str(excinfo.value)
    assert "\n" not in text
    return text


def shapes_of(module, variables, input_shape, **kwargs):
    images = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    return jax.eval_shape(lambda v, x: models.call(module, v, x, train=False, **kwargs)[0], variables, images)


def test_count_of_the_toy_mlp():
    variables = models.init_variables(models.create_model("mlp", 10, hidden=[128, 128]), (1, 30), 0)
    assert models.count_parameters(variables) == 21_770
    assert not models.has_batch_norm(variables)


ODD = [(8, 1, (8, 8, 4, 2)), (33, 3, (33, 33, 17, 9)), (5, 2, (5, 5, 3, 2))]


@pytest.mark.parametrize(("size", "channels", "sizes"), ODD)
@pytest.mark.parametrize(("name", "widths"), [("resnet8", (16, 16, 32, 64)), ("resnet8x4", (32, 64, 128, 256))])
def test_features_of_any_image_size(name, widths, size, channels, sizes):
    module = models.create_model(name, 7)
    shape = (2, size, size, channels)
    output = shapes_of(module, models.init_variables(module, shape, 0), shape)
    assert output.logits.shape == (2, 7)
    assert output.pooled.shape == (2, widths[-1])
    for stage, side, width in zip(("stem", "stage1", "stage2", "stage3"), sizes, widths, strict=True):
        assert output.features[stage].shape == (2, side, side, width)
        assert output.features[f"{stage}_preact"].shape == (2, side, side, width)
    assert len(output.features) == 8


def test_widths_and_depth_by_arguments():
    module = models.create_model("resnet8", 7, depth=10, widths=[4, 4, 8, 8, 16])
    output = shapes_of(module, models.init_variables(module, (2, 8, 8, 3), 0), (2, 8, 8, 3))
    assert output.features["stage4"].shape == (2, 1, 1, 16)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_mlp_flattens_and_pools_its_last_layer(hidden):
    module = models.create_model("mlp", 3, hidden=hidden)
    variables = models.init_variables(module, (1, 4, 4, 2), 0)
    images = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 4, 4, 2)
    output, _ = models.call(module, variables, images, train=False)
    x = images.reshape(2, -1)
    for i in range(1, len(hidden) + 1):
        x = np.maximum(x @ variables["params"][f"hidden{i}"]["kernel"] + variables["params"][f"hidden{i}"]["bias"], 0)
        np.testing.assert_allclose(output.features[f"hidden{i}"], x, rtol=1e-5, atol=1e-6)
        after_relu = np.maximum(output.features[f"hidden{i}_preact"], 0)
        np.testing.assert_array_equal(after_relu, output.features[f"hidden{i}"])
    np.testing.assert_allclose(output.pooled, x, rtol=1e-5, atol=1e-6)
    fc = variables["params"]["fc"]
    np.testing.assert_allclose(output.logits, x @ fc["kernel"] + fc["bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_computes_low_and_keeps_high(name, train):
    module = models.create_model(name, 5, dtype="bfloat16")
    variables = models.init_variables(module, (1, 8, 8, 3), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    output, batch_stats = jax.eval_shape(lambda v, x: models.call(module, v, x, train=train), variables, images)
    assert output.logits.dtype == jnp.float32
    assert {feature.dtype for feature in output.features.values()} == {jnp.dtype("bfloat16")}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(batch_stats))


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
@pytest.mark.parametrize("train", [False, True])
def test_float64_stays_float64(name, train):
    with jax.enable_x64(True):
        module = models.create_model(name, 5)
        variables = models.init_variables(module, (1, 8, 8, 3), 0)
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float64)
        result = jax.eval_shape(lambda v, x: models.call(module, v, x, train=train), variables, images)
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, result))} == {np.dtype("float64")}


def test_a_model_from_any_module():
    module = models.create_model(f"{__name__}:TinyNet", 4, width=3)
    assert module.width == 3
    variables = models.init_variables(module, (1, 2, 2, 1), 0)
    assert models.count_parameters(variables) == (4 * 3 + 3) + (3 * 4 + 4)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("resnet21", {}, "'resnet2"),
        ("resnet8", {"width": (1, 2)}, "Did you mean 'widths'"),
        ("mlp", {"hiden": (5,)}, "config.model.args: model 'mlp' takes no 'hiden'. Did you mean 'hidden'"),
        ("mlp", {"num_classes": 5}, "data set"),
        ("mlp", {"hidden": 5}, "(512, 512)"),
        ("resnet8", {"depth": 9}, "depth must be 2 + 6 n"),
        ("resnet8", {"widths": 5}, "widths must be"),
        (f"{__name__}:TinyNet", {"widht": 5}, "Did you mean 'width'"),
        (f"{__name__}:TinyNett", {}, "Did you mean 'TinyNet'"),
        (f"{__name__}:TinyNet", {"dtype": "bfloat16"}, "takes no dtype"),
        (f"{__name__}:ODD", {}, "not a flax.linen module"),
        (f"{__name__}:one_line", {}, "num_classes"),
        ("mlp", {"dtype": "float16"}, "'bfloat16'"),
    ],
)
def test_mistakes_are_one_line(name, args, says):
    with pytest.raises(UserError) as excinfo:
        models.create_model(name, 4, **args)
    assert says in one_line(excinfo)


def test_a_resnet_refuses_vectors():
    module = models.create_model("resnet8", 4)
    with pytest.raises(UserError) as excinfo:
        models.init_variables(module, (1, 30), 0)
    assert "[batch, height, width, channels]" in one_line(excinfo)
