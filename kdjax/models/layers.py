"""The layers that the convolutional networks share, with the field's padding and statistics."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.errors import UserError
from kdjax.types import Array

# Explicit padding: 'SAME' pads (0, 1) at stride 2 where the field's networks pad (1, 1).
conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
conv1x1 = partial(nn.Conv, kernel_size=(1, 1), padding=0, use_bias=False)


def depthwise3x3(channels: int, **kwargs: Any) -> nn.Conv:
    """Returns a 3x3 convolution of each channel by itself."""
    return conv3x3(channels, feature_group_count=channels, **kwargs)


def batch_norm(dtype: Any, train: bool) -> partial:
    """Returns BatchNorm as these networks use it: epsilon 1e-5, momentum 0.9 (PyTorch writes 0.1)."""
    return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def spatial_mean(x: Array) -> Array:
    """Returns the mean over height and width, [batch, channels], float32 at least."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def check_images(images: Array, who: str, least: int = 1) -> None:
    """Refuses what is no batch of images [batch, height, width, channels] with `least` pixels a side."""
    if len(images.shape) != 4:
        raise UserError(f"{who} reads images [batch, height, width, channels], not {images.shape}; try mlp.")
    if min(images.shape[1:3]) < least:
        raise UserError(
            f"{who} needs images of {least} pixels a side at least, not {images.shape}; see config.data.size."
        )
