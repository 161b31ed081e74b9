"""Geometric steps: which stored pixel each pixel of a view reads, traced through all steps, for a single gather.

Coordinates are integers, in units of 1/65536 of a pixel where necessary, as in Pillow's nearest-neighbour transform.
The result therefore has the same bits on any number of devices.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.views.resize import crop_weights
from kdjax.types import Array

ONE = 1 << 16  # the integer of a matrix that means 1
ANGLE_STEP = 0.01  # degrees between two possible angles of a random rotation


class PixelMap(NamedTuple):
    """The stored pixel that each pixel of a view reads.

    Attributes:
      y: Row of the stored pixel, [batch or 1, height, width] int32.
      x: Column of the stored pixel, [batch or 1, height, width] int32.
      fill: Value of the pixel if it reads no stored pixel, or -1 if it reads one, [batch or 1, height, width] int32.
    """

    y: Array
    x: Array
    fill: Array


def padding(size: int) -> int:
    """Returns the number of pixels by which a side is padded before a crop: 4 for a side of 32 (CIFAR), 1 for 8."""
    return max(1, size // 8)


def identity(height: int, width: int) -> PixelMap:
    """Returns the map of a view that is the stored image."""
    y, x = jnp.indices((1, height, width), dtype=jnp.int32)[1:]
    return PixelMap(y, x, jnp.full((1, height, width), -1, jnp.int32))


def flip(pixels: PixelMap, mirrored: Array, width: int) -> PixelMap:
    """Returns the map of a view of images that are flipped left to right where `mirrored` [batch] is True."""
    return pixels._replace(x=jnp.where(mirrored[:, None, None], width - 1 - pixels.x, pixels.x))


def shift(pixels: PixelMap, top: Array, left: Array, height: int, width: int) -> PixelMap:
    """Returns the map of a view of images that are cropped at (top, left) [batch], with zeros outside the image."""
    return _inside(pixels, pixels.y + top[:, None, None], pixels.x + left[:, None, None], height, width, fill=0)


def warp(pixels: PixelMap, matrix: Array, height: int, width: int, fill: int) -> PixelMap:
    """Returns the map of a view of images that are transformed affinely, with nearest-neighbour sampling.

    Args:
      pixels: The map of the view of the transformed images.
      matrix: Affine maps [batch, 6] int32, made by `fixed`.
      height: Height of the images in pixels.
      width: Width of the images in pixels.
      fill: Value of pixels for which the affine map reads outside the image.
    """
    a, b, c, d, e, f = (matrix[:, i, None, None] for i in range(6))
    x = (a * pixels.x + b * pixels.y + c) >> 16
    y = (d * pixels.x + e * pixels.y + f) >> 16
    return _inside(pixels, y, x, height, width, fill)


def _inside(pixels: PixelMap, y: Array, x: Array, height: int, width: int, fill: int) -> PixelMap:
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    filled = jnp.where((pixels.fill < 0) & outside, fill, pixels.fill)
    return PixelMap(jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1), filled)


def read(images: Array, rows: Array, pixels: PixelMap) -> Array:
    """Returns the pixels of images[rows], [batch, height, width, channels], in one gather."""
    values = images[rows[:, None, None], pixels.y, pixels.x]
    return jnp.where(pixels.fill[..., None] < 0, values, pixels.fill[..., None].astype(values.dtype))


def padded_crop(images: Array, rows: Array, top: Array, left: Array, mirrored: Array | None) -> Array:
    """Returns crops of images[rows] at (top, left) [batch], with zeros outside, flipped where `mirrored` is True.

    Same result as `shift` and `flip`, but faster, since rows and columns are separate until the gather.
    """
    height, width = images.shape[1:3]
    y = jnp.arange(height, dtype=jnp.int32) + top[:, None]  # [batch, height]; outside the image in the padding
    x = jnp.arange(width, dtype=jnp.int32) + left[:, None]
    if mirrored is not None:
        x = jnp.where(mirrored[:, None], x[:, ::-1], x)
    inside = ((0 <= y) & (y < height))[:, :, None, None] & ((0 <= x) & (x < width))[:, None, :, None]
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    return jnp.where(inside, images[rows[:, None, None], y[:, :, None], x[:, None, :]], 0)


def fixed(matrix: tuple[float, ...]) -> list[int]:
    """Returns the integers with which Pillow computes Image.transform(..., AFFINE, matrix), including pixel centres."""
    a, b, c, d, e, f = matrix
    return [math.floor(part * ONE + 0.5) for part in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]


def rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Returns the matrix of Pillow's Image.rotate, which rotates counter-clockwise about the centre."""
    sine, cosine = (round(part(-math.radians(degrees)), 15) for part in (math.sin, math.cos))
    x, y = width / 2, height / 2
    return cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y


# Name -> function of magnitude, height and width that returns the matrix from a pixel of the result to the pixel that
# is read. As in the code of AutoAugment, shears keep the top left corner, and translations are fractions of the side.
WARPS: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "shear_x": lambda amount, height, width: (1, amount, 0, 0, 1, 0),
    "shear_y": lambda amount, height, width: (1, 0, 0, amount, 1, 0),
    "translate_x": lambda amount, height, width: (1, 0, amount * width, 0, 1, 0),
    "translate_y": lambda amount, height, width: (1, 0, 0, 0, 1, amount * height),
    "rotate": rotation,
}


def rotations(degrees: float, height: int, width: int) -> np.ndarray:
    """Returns the rotations by all angles from -degrees to degrees in steps of ANGLE_STEP, [angles, 6] int32."""
    count = round(degrees / ANGLE_STEP)
    angles = [step * ANGLE_STEP for step in range(-count, count + 1)]
    return np.array([fixed(rotation(angle, height, width)) for angle in angles], np.int32)


def resized_crop(
    values: Array, box: tuple[Array, Array, Array, Array], mirrored: Array, sides: tuple[int, int], kernel: str
) -> Array:
    """Returns crops, resized as in Pillow (columns first) to [batch, *sides, channels], and flipped if asked for.

    Args:
      values: Images [batch, height, width, channels] in the stored type. Bytes are rounded after each direction and
        stay bytes.
      box: Top, left, height and width of each crop, [batch] each; no pixel outside of it is read.
      mirrored: Whether each image is flipped left to right, bool [batch].
      sides: Height and width of the result in pixels.
      kernel: 'bicubic' or 'bilinear'.
    """
    top, left, tall, wide = box
    across = crop_weights(left, wide, sides[1], values.shape[2], kernel)
    across = jnp.where(mirrored[:, None, None], across[:, ::-1], across)
    down = crop_weights(top, tall, sides[0], values.shape[1], kernel)
    out = _rounded(_einsum("bXx,byxc->byXc", across, values), values.dtype)
    out = _rounded(_einsum("bYy,byxc->bYxc", down, out), values.dtype)
    return out.astype(values.dtype)


def _einsum(formula: str, weights: Array, values: Array) -> Array:
    return jnp.einsum(formula, weights, values.astype(weights.dtype), precision=jax.lax.Precision.HIGHEST)


def _rounded(values: Array, dtype) -> Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255) if dtype == jnp.uint8 else values
