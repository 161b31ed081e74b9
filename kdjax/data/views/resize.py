"""Resizes images with Pillow's filters: whole images, and crops by matrices of weights."""

import jax
import jax.numpy as jnp

from kdjax.data.views.crop_boxes import middle_box
from kdjax.types import Array


def _bicubic(x: Array) -> Array:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _bilinear(x: Array) -> Array:
    return jnp.maximum(1 - x, 0)


# Name -> weight as a function of the distance in pixels, which is at least 0. The bicubic filter has a = -1/2.
KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}


def crop_weights(start: Array, length: Array, size: int, total: int, kernel: str) -> Array:
    """Returns the weights of stored pixels that resize the pixels start, ..., start + length - 1 to `size` pixels.

    Args:
      start: First pixel of each crop, integers [batch].
      length: Number of pixels of each crop, integers [batch].
      size: Number of pixels of the result. If it is smaller than `length`, the filter is widened, as in Pillow.
      total: Number of pixels of the stored side.
      kernel: A key of KERNELS.

    Returns:
      Weights [batch, size, total] in jax's default float type; each row has sum 1.
    """
    dtype = jnp.result_type(float)
    scale = (length.astype(dtype) / size)[:, None, None]
    centre = (jnp.arange(size, dtype=dtype)[None, :, None] + 0.5) * scale
    pixel = jnp.arange(total, dtype=jnp.int32)[None, None, :] - start[:, None, None]
    distance = jnp.abs(pixel + 0.5 - centre) / jnp.maximum(scale, 1)
    inside = (pixel >= 0) & (pixel < length[:, None, None])
    weights = jnp.where(inside, KERNELS[kernel](distance), 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def resize(values: Array, size: int, kernel: str = "bicubic") -> Array:
    """Returns images resized to [batch, size, size, channels] with Pillow's bicubic (a = -1/2) or bilinear filter.

    Images that are larger than `size` are cropped centrally first (see `middle_box`). Bytes are rounded after each
    direction, as in Pillow, and stay bytes.

    Args:
      values: Images [batch, height, width, channels] in the stored type.
      size: Side of the result in pixels, above 0.
      kernel: 'bicubic' or 'bilinear'.
    """
    values = _middle(values, size)
    batch, height, width, channels = values.shape
    if (height, width) == (size, size):
        return values
    out = values.astype(jnp.result_type(float))
    for shape in ((batch, height, size, channels), (batch, size, size, channels)):
        out = jax.image.resize(
            out, shape, {"bicubic": "cubic", "bilinear": "linear"}[kernel], precision=jax.lax.Precision.HIGHEST
        )
        if values.dtype == jnp.uint8:
            out = jnp.clip(jnp.floor(out + 0.5), 0, 255)
    return out.astype(values.dtype)


def _middle(values: Array, size: int) -> Array:
    height, width = values.shape[1:3]
    if min(height, width) <= size:
        return values
    top, left, side, _ = middle_box(height, width)
    return values[:, top : top + side, left : left + side]
