"""Where each pixel of a view comes from: whole-number indices through every step, so that one gather reads the image.

Coordinates are integers, in units of 1/65536 where a step is not whole, as in Pillow's own nearest-neighbour transform:
the same bits on any device count.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.views.resample import crop_weights
from kdjax.types import Array

ONE = 1 << 16  # the unit of a matrix's integers
ANGLE_STEP = 0.01  # degrees between two neighbouring angles of a random rotation


class Pixels(NamedTuple):
    """For every pixel of a view, where it reads.

    Attributes:
      y, x: [batch or 1, height, width] int32.
      fill: like them, what stands where no pixel is read; -1 where one is.
    """

    y: Array
    x: Array
    fill: Array


def padding(size: int) -> int:
    """Returns by how many pixels a side of `size` pixels is padded before a crop: 4 at 32 as for CIFAR, 1 at 8."""
    return max(1, size // 8)


def identity(height: int, width: int) -> Pixels:
    """Returns a view that reads every pixel where it stands."""
    y, x = jnp.indices((1, height, width), dtype=jnp.int32)[1:]
    return Pixels(y, x, jnp.full((1, height, width), -1, jnp.int32))


def flip(pixels: Pixels, mirrored: Array, width: int) -> Pixels:
    """Returns pixels read from an image that is mirrored left to right where `mirrored` [batch] says so."""
    return pixels._replace(x=jnp.where(mirrored[:, None, None], width - 1 - pixels.x, pixels.x))


def shift(pixels: Pixels, top: Array, left: Array, height: int, width: int) -> Pixels:
    """Returns pixels read from a crop that begins at (top, left) [batch], with zeros outside the image."""
    return _inside(pixels, pixels.y + top[:, None, None], pixels.x + left[:, None, None], height, width, fill=0)


def warp(pixels: Pixels, matrix: Array, height: int, width: int, fill: int) -> Pixels:
    """Returns pixels read from an image that an affine map made of another, by its nearest pixel.

    Args:
      pixels: of the image that the map made.
      matrix: [batch, 6] int32 rows of `fixed`.
      height, width: of both images.
      fill: what the map shows where it reads outside.
    """
    a, b, c, d, e, f = (matrix[:, i, None, None] for i in range(6))
    x = (a * pixels.x + b * pixels.y + c) >> 16
    y = (d * pixels.x + e * pixels.y + f) >> 16
    return _inside(pixels, y, x, height, width, fill)


def _inside(pixels: Pixels, y: Array, x: Array, height: int, width: int, fill: int) -> Pixels:
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    filled = jnp.where((pixels.fill < 0) & outside, fill, pixels.fill)
    return Pixels(jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1), filled)


def read(images: Array, rows: Array, pixels: Pixels) -> Array:
    """Returns [batch, height, width, channels]: the pixels of images[rows], in one gather."""
    values = images[rows[:, None, None], pixels.y, pixels.x]
    return jnp.where(pixels.fill[..., None] < 0, values, pixels.fill[..., None].astype(values.dtype))


def padded_crop(images: Array, rows: Array, top: Array, left: Array, mirrored: Array | None) -> Array:
    """Returns crops at (top, left) [batch] with zeros outside, mirrored where `mirrored` says so, in one gather.

    Rows and columns stay apart until the gather: the same as `shift` and `flip`, at less cost.
    """
    height, width = images.shape[1:3]
    y = jnp.arange(height, dtype=jnp.int32) + top[:, None]  # [batch, height], outside the image in the padding
    x = jnp.arange(width, dtype=jnp.int32) + left[:, None]
    if mirrored is not None:
        x = jnp.where(mirrored[:, None], x[:, ::-1], x)
    inside = ((0 <= y) & (y < height))[:, :, None, None] & ((0 <= x) & (x < width))[:, None, :, None]
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    return jnp.where(inside, images[rows[:, None, None], y[:, :, None], x[:, None, :]], 0)


def fixed(matrix: tuple[float, ...]) -> list[int]:
    """Returns the integers by which Pillow's Image.transform(..., AFFINE, matrix) reads, pixel centres included."""
    a, b, c, d, e, f = matrix
    return [math.floor(part * ONE + 0.5) for part in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]


def rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Returns Pillow's matrix of Image.rotate: counter-clockwise about the centre."""
    sine, cosine = (round(part(-math.radians(degrees)), 15) for part in (math.sin, math.cos))
    x, y = width / 2, height / 2
    return cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y


# Magnitude and sides -> the matrix from a pixel of the result to where it is read, as in AutoAugment's own code:
# shears keep the top left corner, translations are in parts of the side.
WARPS: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "shear_x": lambda amount, height, width: (1, amount, 0, 0, 1, 0),
    "shear_y": lambda amount, height, width: (1, 0, 0, amount, 1, 0),
    "translate_x": lambda amount, height, width: (1, 0, amount * width, 0, 1, 0),
    "translate_y": lambda amount, height, width: (1, 0, 0, 0, 1, amount * height),
    "rotate": rotation,
}


def rotations(degrees: float, height: int, width: int) -> np.ndarray:
    """Returns [angles, 6] int32: the maps of all angles from -degrees to degrees in steps of ANGLE_STEP."""
    count = round(degrees / ANGLE_STEP)
    angles = [step * ANGLE_STEP for step in range(-count, count + 1)]
    return np.array([fixed(rotation(angle, height, width)) for angle in angles], np.int32)


def resized_crop(
    values: Array, box: tuple[Array, Array, Array, Array], mirrored: Array, sides: tuple[int, int], kernel: str
) -> Array:
    """Returns crops resized to [batch, *sides, channels] as Pillow does it, columns first, perhaps mirrored.

    Args:
      values: [batch, ...] images in the stored type; bytes are rounded after each direction and stay bytes.
      box: top, left, height and width of each crop, [batch] each; nothing outside it is read.
      mirrored: [batch] bool.
      sides: height and width of the result.
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
