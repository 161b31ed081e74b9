"""Folding BatchNorm into the layer before it changes no output, and leaves alone what it must not change."""

import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.types import ModelOutput

SHAPE = (2, 8, 8, 3)


class AllKinds(nn.Module):
    """BatchNorm after each kind of layer that folds, and after sums, layers that are read twice and called twice."""

    num_classes: int
    dtype: None = None

    @nn.compact
    def __call__(self, images, train=False):
        def norm(x, name):
            return nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name=name)(x)

        x = norm(nn.Conv(4, (3, 3), dtype=self.dtype, name="biased")(images), "folds1")
        x = norm(nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False, name="depthwise")(jnp.sin(x)), "folds2")
        shared = nn.Conv(4, (1, 1), name="called_twice")
        x = norm(shared(norm(shared(x), "stays1")), "stays2")
        read = nn.Conv(4, (1, 1), name="read_twice")(x)
        x = norm(read, "stays3") + read
        x = norm(x + images[..., :1], "stays4")
        feature = nn.Conv(4, (1, 1), name="feature")(x)
        x = norm(feature, "stays5_unless_features_are_picked")
        pooled = norm(nn.Dense(6, dtype=self.dtype, name="linear")(x.mean(axis=(1, 2))), "folds3")
        return ModelOutput(nn.Dense(self.num_classes, name="fc")(pooled), {"raw": feature, "x": x}, pooled)


def variables_of(module, dtype):
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        positive = path[-1].key in ("var", "scale")
        return (generator.uniform(0.5, 2, leaf.shape) if positive else generator.normal(size=leaf.shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, models.variable_shapes(module, SHAPE))


def outputs(module, variables, images):
    return jax.jit(lambda v, x: models.call(module, v, x, train=False)[0])(variables, images)


def assert_equal(module, dtype, relative):
    images = np.random.default_rng(1).normal(size=SHAPE).astype(dtype)
    variables = variables_of(module, dtype)
    folded = models.fold(module, variables, SHAPE)
    plain, found = outputs(module, variables, images), outputs(module, folded, images)
    assert list(plain.features) == list(found.features)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        assert a.dtype == b.dtype == dtype and np.max(np.abs(a)) > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.max(np.abs(a)))
    return variables, folded


@pytest.mark.parametrize(
    "module",
    [
        AllKinds(5),
        models.create_model("resnet8", 5, widths=(4, 4, 6, 8)),
        pytest.param(models.create_model("wrn_16_1", 5), marks=pytest.mark.slow),
        pytest.param(models.create_model("mobilenetv2_half", 5), marks=pytest.mark.slow),
    ],
    ids=lambda module: type(module).__name__,
)
def test_logits_and_features_stay_equal(module):
    assert_equal(module, np.float32, 1e-5)
    with jax.enable_x64(True):
        assert_equal(module, np.float64, 1e-10)


def test_only_what_nothing_else_reads_is_folded():
    module = AllKinds(5)
    variables = variables_of(module, np.float32)
    folded = models.fold(module, variables, SHAPE)
    assert sorted(folded["folded"]) == ["folds1", "folds2", "folds3"]
    assert [name[:6] for name in sorted(folded["batch_stats"])] == [f"stays{i}" for i in range(1, 6)]
    changed = {path for path, leaf in variables["params"].items() if not _same(leaf, folded["params"][path])}
    assert changed == {"biased", "depthwise", "linear"}  # scale and bias of BatchNorm stay for losses that read them


def test_a_picked_feature_before_batch_norm_stays_what_it_was():
    plain = AllKinds(5)
    module = models.FeatureExtractor(plain, ("biased", "folds2"))
    variables = variables_of(plain, np.float32)
    folded = models.fold(module, variables, SHAPE)
    assert sorted(folded["folded"]) == ["folds2", "folds3", "stays5_unless_features_are_picked"]
    images = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    for a, b in zip(*(jax.tree.leaves(outputs(module, each, images)) for each in (variables, folded)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.max(np.abs(a)))


def test_in_bfloat16_weights_are_cast_beforehand_and_the_program_casts_maps_no_more_than_at_its_ends():
    module = models.create_model("resnet8", 5, widths=(4, 4, 6, 8), dtype="bfloat16")
    folded = models.fold(module, variables_of(module, np.float32), SHAPE)
    assert folded["params"]["stage1_block1"]["conv1"]["kernel"].dtype == jnp.bfloat16
    assert folded["params"]["fc"]["kernel"].dtype == np.float32  # the classifier computes in float32
    program = jax.jit(lambda v, x: models.call(module, v, x, train=False)[0].logits)
    text = program.lower(folded, np.zeros(SHAPE, np.float32)).as_text()
    assert casts(text) == {("f32", "bf16"): 1, ("bf16", "f32"): 1}  # the images, and the maps before their mean


def test_training_in_bfloat16_casts_each_kernel_once_and_each_map_of_batch_norm_twice_in_each_direction():
    module = models.create_model("resnet8", 5, widths=(4, 4, 6, 8), dtype="bfloat16")
    variables = variables_of(module, np.float32)

    def loss(params, images):
        found = models.call(module, {**variables, "params": params}, images, train=True)[0]
        return jnp.sum(found.logits**2)

    text = jax.jit(jax.grad(loss)).lower(variables["params"], np.zeros(SHAPE, np.float32)).as_text()
    kernels = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    found = casts(text)
    assert found["f32", "bf16"] == kernels + 2 * norms + 2  # + the images, and the gradient of the mean
    assert found["bf16", "f32"] == kernels + 2 * norms + 1


def casts(text: str) -> Counter:
    """Returns how often a lowered program casts between bfloat16 and float32."""
    pairs = re.findall(r"stablehlo\.convert .*: \(tensor<(?:\d+x)*(\w+)>\) -> tensor<(?:\d+x)*(\w+)>", text)
    return Counter(pair for pair in pairs if set(pair) == {"f32", "bf16"})


def _same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
