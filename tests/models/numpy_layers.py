"""PyTorch's layers in NumPy, in NCHW layout, with weights from a state dict, for the tests to compare with."""

import math

import numpy as np


def conv2d(x, weight, stride=1, padding=0, groups=1, bias=None):
    """Returns the cross-correlation of [batch, in, h, w] with [out, in / groups, kh, kw]."""
    out_channels, group_in, kh, kw = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = (x.shape[2] - kh) // stride + 1, (x.shape[3] - kw) // stride + 1
    x = x.reshape(x.shape[0], groups, group_in, *x.shape[2:])
    weight = weight.reshape(groups, out_channels // groups, group_in, kh, kw)
    out = np.zeros((x.shape[0], groups, out_channels // groups, height, width), x.dtype)
    for i in range(kh):
        for j in range(kw):
            patch = x[..., i : i + stride * height : stride, j : j + stride * width : stride][..., :height, :width]
            out += np.einsum("bgihw,goi->bgohw", patch, weight[..., i, j], optimize=True)
    out = out.reshape(x.shape[0], out_channels, height, width)
    return out if bias is None else out + bias[:, None, None]


def conv(x, sd, name, stride=1, padding=0, groups=1):
    """Applies the convolution `name` of a state dict, with its bias if it has one."""
    return conv2d(x, sd[f"{name}.weight"], stride, padding, groups, sd.get(f"{name}.bias"))


def batch_norm(x, sd, name):
    """Normalises [batch, channels, ...] by the running statistics of the layer `name`."""
    scale = sd[f"{name}.weight"] / np.sqrt(sd[f"{name}.running_var"] + 1e-5)
    shift = sd[f"{name}.bias"] - sd[f"{name}.running_mean"] * scale
    shape = (-1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def layer_norm(x, sd, name, epsilon=1e-6):
    """Normalises over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * sd[f"{name}.weight"] + sd[f"{name}.bias"]


def linear(x, sd, name):
    """x Wᵀ + b."""
    return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    """x Φ(x), exact."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _pool(x, size, stride, padding, fill, reduce):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    height, width = (x.shape[2] - size) // stride + 1, (x.shape[3] - size) // stride + 1
    patches = [
        x[:, :, i : i + stride * height : stride, j : j + stride * width : stride][:, :, :height, :width]
        for i in range(size)
        for j in range(size)
    ]
    return reduce(np.stack(patches), axis=0)


def max_pool(x, size, stride, padding=0):
    return _pool(x, size, stride, padding, -np.inf, np.max)


def avg_pool(x, size, stride, padding=0):
    """Padded zeros count in the mean, as in PyTorch."""
    return _pool(x, size, stride, padding, 0.0, np.mean)


def random_state_dict(shapes, seed=0):
    """Returns a random state dict for {name: shape}: He-scaled kernels, statistics and scales near 0 and 1."""
    generator = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("running_var"):
            return generator.uniform(0.5, 1.5, shape)
        if len(shape) > 1:
            return generator.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        return generator.normal(1.0 if name.endswith("weight") else 0.0, 0.2, shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def to_nhwc(x):
    return np.moveaxis(x, 1, -1)
