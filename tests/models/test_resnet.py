"""The CIFAR ResNet against an independent implementation in NumPy, in float64."""

import jax
import numpy as np
import pytest

from kdjax import models


def convolve(x, kernel, stride):
    """Returns the cross-correlation with (k - 1) / 2 zeros on every side, as a sum over kernel positions."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((side - k) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(k):
        for j in range(k):
            patch = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            out += patch[:, :height, :width] @ kernel[i, j]
    return out


def normalise(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def block(x, params, stats, stride):
    y = convolve(x, params["conv1"]["kernel"], stride)
    y = np.maximum(normalise(y, params["bn1"], stats["bn1"]), 0)
    y = normalise(convolve(y, params["conv2"]["kernel"], 1), params["bn2"], stats["bn2"])
    if "shortcut" in params:
        x = normalise(convolve(x, params["shortcut"]["kernel"], stride), params["shortcut_bn"], stats["shortcut_bn"])
    return y + x


def forward(variables, x, blocks):
    params, stats = variables["params"], variables["batch_stats"]
    features = {"stem_preact": normalise(convolve(x, params["stem"]["kernel"], 1), params["stem_bn"], stats["stem_bn"])}
    x = features["stem"] = np.maximum(features["stem_preact"], 0)
    for stage in (1, 2, 3):
        for i in range(1, blocks + 1):
            name = f"stage{stage}_block{i}"
            preact = block(x, params[name], stats[name], 2 if stage > 1 and i == 1 else 1)
            x = np.maximum(preact, 0)
        features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
    pooled = x.mean(axis=(1, 2))
    return pooled @ params["fc"]["kernel"] + params["fc"]["bias"], features, pooled


def random_variables(module, shape, seed):
    """Returns initial variables with every vector changed, so that a scale of 1 or a mean of 0 hides no mistake."""
    generator = np.random.default_rng(seed)

    def move(leaf):
        return leaf + np.abs(generator.normal(0, 0.3, leaf.shape)) if leaf.ndim == 1 else leaf

    return jax.tree.map(move, models.init_variables(module, shape, seed))


@pytest.mark.parametrize(
    ("name", "args", "blocks", "shape"),
    [
        ("resnet8", {}, 1, (2, 8, 8, 3)),
        ("resnet8", {}, 1, (2, 9, 7, 1)),
        ("resnet8", {"depth": 14, "widths": (6, 8, 8, 12)}, 2, (2, 6, 6, 2)),
    ],
)
def test_evaluation_equals_numpy(name, args, blocks, shape):
    with jax.enable_x64(True):
        module = models.create_model(name, 5, **args)
        variables = random_variables(module, shape, 3)
        images = np.random.default_rng(0).normal(size=shape)
        output, batch_stats = jax.jit(lambda v, x: models.call(module, v, x, train=False))(variables, images)
        logits, features, pooled = forward(variables, images, blocks)
        assert set(output.features) == set(features)
        for found, expected in [(output.logits, logits), (output.pooled, pooled)]:
            np.testing.assert_allclose(found, expected, rtol=1e-10)
        for stage, value in features.items():
            np.testing.assert_allclose(output.features[stage], value, rtol=1e-10, atol=1e-10)
        jax.tree.map(np.testing.assert_array_equal, batch_stats, variables["batch_stats"])


def test_training_moves_running_statistics_by_a_tenth():
    with jax.enable_x64(True):
        module = models.create_model("resnet8", 5)
        variables = random_variables(module, (4, 8, 8, 3), 1)
        images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
        output, stats = jax.jit(lambda v, x: models.call(module, v, x, train=True))(variables, images)
        stem = convolve(images, variables["params"]["stem"]["kernel"], 1)
        batch = {"mean": stem.mean(axis=(0, 1, 2)), "var": stem.var(axis=(0, 1, 2))}
        old = variables["batch_stats"]["stem_bn"]
        for name, value in batch.items():
            np.testing.assert_allclose(stats["stem_bn"][name], 0.9 * old[name] + 0.1 * value, rtol=1e-10)
        normalised = normalise(stem, variables["params"]["stem_bn"], batch)
        np.testing.assert_allclose(output.features["stem_preact"], normalised, rtol=1e-9, atol=1e-10)
        moved = jax.tree.map(lambda a, b: not np.any(np.asarray(a) == b), stats, variables["batch_stats"])
        assert all(jax.tree.leaves(moved))
