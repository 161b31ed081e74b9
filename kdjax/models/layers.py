"""Layers that the convolutional networks share, with the padding and statistics of their PyTorch originals."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.types import Array

# The padding is explicit: at stride 2, flax's 'SAME' pads (0, 1) where PyTorch's networks pad (1, 1).
conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
conv1x1 = partial(nn.Conv, kernel_size=(1, 1), padding=0, use_bias=False)


def depthwise3x3(channels: int, **kwargs: Any) -> nn.Conv:
    """Returns a 3x3 convolution that filters each channel separately; `kwargs` are those of flax's Conv."""
    return conv3x3(channels, feature_group_count=channels, **kwargs)


def batch_norm(dtype: DTypeLike | None, train: bool) -> partial:
    """Returns a constructor of BatchNorm with PyTorch's defaults: epsilon 1e-5, momentum 0.9 (0.1 in PyTorch's sense).

    Args:
      dtype: Type of the computation; None takes that of parameters and input.
      train: Whether to normalise by the batch's statistics instead of the running ones.
    """
    return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def spatial_mean(x: Array) -> Array:
    """Returns the mean over height and width [batch, channels] of a map, in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def check_images(images: Array, who: str, least: int = 1) -> None:
    """Refuses images that are not [batch, height, width, channels] with at least `least` pixels a side.

    Args:
      images: Batch of images.
      who: Name of the network with its article, for the error message.
      least: Smallest allowed height and width.

    Raises:
      UserError: The images have another number of axes, or are too small.
    """
    if len(images.shape) != 4:
        raise UserError(f"{who} reads images [batch, height, width, channels], not {images.shape}; try mlp.")
    if min(images.shape[1:3]) < least:
        raise UserError(
            f"{who} needs images of at least {least} pixels a side, not {images.shape}; set config.data.size."
        )
