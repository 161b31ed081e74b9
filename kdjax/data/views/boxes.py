"""Which part of an image a random resized crop shows, and which the middle; the same numbers on host and device."""

import math
from typing import Any

import numpy as np

ATTEMPTS = 10  # to find a resized crop that fits, as in torchvision
WORDS = 2 * ATTEMPTS + 2  # random words that a box takes
RATIOS = np.exp(np.linspace(math.log(3 / 4), math.log(4 / 3), 1024) / 2).astype(np.float32)  # roots of aspect ratios


def resized_box(bits: Any, smallest: float, height: int, width: int, xp: Any = np) -> tuple[Any, Any, Any, Any]:
    """Draws torchvision's RandomResizedCrop with aspect ratios from 3/4 to 4/3: the first of ATTEMPTS that fits.

    Args:
      bits: [batch, WORDS] uint32.
      smallest: part of the image's area; the largest is all of it.
      height, width: of the image.
      xp: numpy, or jax.numpy on the device.

    Returns:
      top, left, height and width of the crop, each [batch] int32.
    """
    unit = (bits[:, :ATTEMPTS] >> 8).astype(xp.float32) / (1 << 24)
    side = xp.sqrt((smallest + (1 - smallest) * unit) * np.float32(height * width))
    root = xp.asarray(RATIOS)[bits[:, ATTEMPTS : 2 * ATTEMPTS] % len(RATIOS)]
    tall, wide = (xp.floor(part + 0.5).astype(xp.int32) for part in (side / root, side * root))
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    first = xp.argmax(fits, axis=1)[:, None]
    found = xp.any(fits, axis=1)
    whole_tall, whole_wide = _central(height, width)
    tall = xp.where(found, xp.take_along_axis(tall, first, 1)[:, 0], whole_tall)
    wide = xp.where(found, xp.take_along_axis(wide, first, 1)[:, 0], whole_wide)
    spare = (height - tall, width - wide)
    drawn = ((bits[:, i - 2] % (room + 1).astype(xp.uint32)).astype(xp.int32) for i, room in enumerate(spare))
    top, left = (xp.where(found, one, room // 2) for one, room in zip(drawn, spare, strict=True))
    return top, left, tall, wide


def _central(height: int, width: int) -> tuple[int, int]:
    """The crop where no attempt fits: as much of the image as a ratio from 3/4 to 4/3 allows."""
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width
    return height, min(width, round(height * 4 / 3))


def middle_box(height: int, width: int, part: float = 224 / 256) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the central square that evaluation shows.

    The papers resize the shorter side to 256 and cut 224 out of the middle: a square of 7/8 of the shorter side.
    """
    side = max(1, round(min(height, width) * part))
    return (height - side) // 2, (width - side) // 2, side, side
