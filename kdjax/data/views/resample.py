"""Pillow's filters: whole images resized, and as matrices, how much of each stored pixel is in a resized crop's."""

import jax
import jax.numpy as jnp

from kdjax.data.views.boxes import middle_box
from kdjax.types import Array


def _bicubic(x: Array) -> Array:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _bilinear(x: Array) -> Array:
    return jnp.maximum(1 - x, 0)


KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}  # of the distance in pixels, not negative; bicubic: a = -1/2


def crop_weights(start: Array, length: Array, size: int, total: int, kernel: str) -> Array:
    """Returns [batch, size, total] float: rows with sum 1 that resize pixels [start, start + length) to `size`.

    Args:
      start, length: [batch] integers, within `total` pixels.
      size: pixels of the result; the filter widens where that is fewer than `length`, as Pillow's does.
      total: pixels of the stored side.
      kernel: of KERNELS.
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
    """Returns images resized to [batch, size, size, channels] by Pillow's bicubic (a = -1/2) or bilinear filter.

    Args:
      values: [batch, height, width, channels] in the stored type; bytes are rounded after each direction, as Pillow
        does it, and stay bytes. Of larger images the middle is taken, as the papers do (256 to 224).
      size: above 0.
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
