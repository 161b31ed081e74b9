"""Applies a view to a batch: crops, flips, rotates, changes colours and erases, at random.

The random numbers are a function of (seed, epoch, example).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax import randomness
from kdjax.data.dataset import Stored
from kdjax.data.views import colour, crop_boxes, geometry, policies
from kdjax.data.views.names import View
from kdjax.data.views.resize import resize
from kdjax.types import Array

ORDERS = np.array(list(itertools.permutations(("brightness", "contrast", "colour"))))
ORDER_CODES = np.vectorize(colour.CODES.get)(ORDERS).astype(np.int32)


def draw_crop(example: Array, epoch: Array, seed: Array, pad_y: int, pad_x: int) -> tuple[Any, Any, Any]:
    """Draws the offset of each example's crop, in [-pad, pad], and whether it is flipped.

    Args:
      example: Row of each example in the full data set, [batch].
      epoch: Number of the pass over the data, integer [] or [batch].
      seed: Seed of the run, integer [].
      pad_y: Number of rows by which images are padded.
      pad_x: Number of columns by which images are padded.

    Returns:
      Top [batch] int32, left [batch] int32, and whether each is flipped, bool [batch].
    """
    words = randomness.bits(example, epoch, seed, "crop", 3, jnp)
    top, left = ((words[:, i] % (2 * pad + 1)).astype(jnp.int32) - pad for i, pad in enumerate((pad_y, pad_x)))
    return top, left, words[:, 2] >> 31 == 1


def show(images: Array, rows: Array, example: Array, epoch: Array, seed: Array, *, view: View, stored: Stored) -> Array:
    """Returns a view of images in the stored type, without its mix. A pure function of its arguments.

    Args:
      images: Images [rows, height, width, channels] in the stored type.
      rows: Rows of `images` to use, [batch].
      example: Row of each example in the full data set, [batch]; its random key is made from it.
      epoch: Number of the pass over the data, integer [] or [batch]; traced or not.
      seed: Seed of the run, integer [] in [0, 2^32); traced or not.
      view: The view; static.
      stored: Size of the view and kernel of resizing; static.
    """
    words = functools.partial(randomness.bits, example, epoch, seed, xp=jnp)
    sides = (stored.size, stored.size) if stored.size else images.shape[1:3]
    tables = _tables(view, *sides)
    choice = _choose(tables, words("policy", 3 * len(tables.codes))) if tables else []
    crop = draw_crop(example, epoch, seed, *(geometry.padding(side) for side in images.shape[1:3]))
    values = _turned(images, rows, crop, words, view, sides, _warps(view, tables, choice, words, sides), stored.kernel)
    if view.jitter:
        values = _jittered(values, words("jitter", 4), view.jitter)
    for names, (_, code, amount) in zip(tables.names if tables else (), choice, strict=True):
        values = colour.apply(values, code, amount, names)
    return erase(values, words("hole", 2), side_of(view.hole, sides)) if view.hole else values


def _turned(
    images: Array, rows: Array, crop: tuple, words: Callable, view: View, sides: tuple, warps: list, kernel: str
) -> Array:
    """Applies all geometric steps: a resized crop, if there is one, and all others in one gather."""
    height, width = images.shape[1:3]
    top, left, mirrored = (part if on else jnp.zeros_like(part) for part, on in zip(
        crop, (view.crop == "padded", view.crop == "padded", view.flip), strict=True))  # fmt: skip
    pixels = geometry.identity(*sides)
    for matrix, fill in reversed(warps):
        pixels = geometry.warp(pixels, matrix, *sides, fill)
    if view.crop != "resized" and (height, width) == tuple(sides) and warps:
        pixels = geometry.shift(geometry.flip(pixels, mirrored, width), top, left, height, width)
        return geometry.read(images, rows, pixels)
    if view.crop == "resized":
        bits = words("resized", crop_boxes.WORDS)
        box = crop_boxes.resized_box(bits, view.smallest, height, width, jnp)
        values = geometry.resized_crop(images[rows], box, mirrored, sides, kernel)
    else:
        values = images[rows]
        if view.crop or view.flip:
            values = geometry.padded_crop(images, rows, top, left, mirrored if view.flip else None)
        values = resize(values, sides[0], kernel) if (height, width) != tuple(sides) else values
    return geometry.read(values, jnp.arange(values.shape[0]), pixels) if warps else values


def _warps(view: View, tables: policies.Tables | None, choice: list, words: Callable, sides: tuple) -> list:
    """Returns (matrix [batch, 6], fill) for every affine step, in order."""
    warps = []
    if view.rotate:
        angles = geometry.rotations(view.rotate, *sides)
        warps.append((jnp.asarray(angles)[words("rotate", 1)[:, 0] % len(angles)], 0))
    return warps + [(matrix, tables.fill) for matrix, _, _ in choice if matrix is not None]


@functools.lru_cache(maxsize=64)
def _tables(view: View, height: int, width: int) -> policies.Tables | None:
    if view.policy == "randaugment_timm":
        return policies.randaugment_timm(height, width, view.count, view.magnitude)
    if view.policy == "randaugment":
        return policies.randaugment(height, width, view.count, view.magnitude)
    return policies.autoaugment_cifar10(height, width) if view.policy else None


def _choose(tables: policies.Tables, words: Array) -> list[tuple[Array | None, Array, Array]]:
    """Returns (matrix [batch, 6] or None if it has no affine map, code [batch], amount [batch]) for every slot."""
    slots, choices = tables.codes.shape
    chosen = []
    for slot in range(slots):
        choice = words[:, 0 if tables.together else 3 * slot] % choices
        applied = words[:, 3 * slot + 1] >> 8 < jnp.asarray(tables.likely[slot])[choice]
        sign = words[:, 3 * slot + 2] >> 31
        matrix = jnp.where(applied[:, None], jnp.asarray(tables.warps[slot])[choice, sign], STILL)
        code = jnp.where(applied, jnp.asarray(tables.codes[slot])[choice], colour.NOTHING)
        has_warp = (tables.warps[slot] != STILL).any()
        chosen.append((matrix if has_warp else None, code, jnp.asarray(tables.amounts[slot])[choice, sign]))
    return chosen


STILL = np.array(geometry.fixed((1, 0, 0, 0, 1, 0)), np.int32)


def _jittered(values: Array, words: Array, strength: float) -> Array:
    """Changes brightness, contrast and colour by factors from 1 - strength to 1 + strength, in random order."""
    codes = jnp.asarray(ORDER_CODES)[words[:, 0] % len(ORDERS)]
    spread = round(strength * colour.THOUSAND)
    amounts = (words[:, 1:] % (2 * spread + 1)).astype(jnp.int32) + colour.THOUSAND - spread
    for slot in range(3):
        values = colour.apply(values, codes[:, slot], amounts[:, slot], ("brightness", "contrast", "colour"))
    return values


def side_of(hole: float, sides: tuple[int, int]) -> int:
    """Returns the side of a hole in pixels, for a view of height and width `sides`."""
    return int(hole) if hole >= 1 else int(hole * min(sides) + 1e-6)


def erase(values: Array, words: Array, side: int) -> Array:
    """Returns images with one square of zeros each, which is cut off at the edges (Cutout).

    Args:
      values: Images [batch, height, width, channels].
      words: Random words [batch, 2] for the centre of the square.
      side: Side of the square in pixels.
    """
    inside = True
    for axis, total in enumerate(values.shape[1:3]):
        first = (words[:, axis] % total).astype(jnp.int32)[:, None] - side // 2
        at = jnp.arange(total, dtype=jnp.int32)
        covered = (at >= first) & (at < first + 2 * (side // 2))
        inside &= jnp.expand_dims(covered, (2, 3) if axis == 0 else (1, 3))
    return jnp.where(inside, jnp.zeros((), values.dtype), values)
