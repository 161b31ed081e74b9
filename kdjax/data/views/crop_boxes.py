"""The boxes of random resized crops and of central crops, with the same numbers on host and device."""

import math
from typing import Any

import numpy as np

ATTEMPTS = 10  # number of attempts to find a crop that fits, as in torchvision
WORDS = 2 * ATTEMPTS + 2  # number of random words for one box
RATIOS = np.exp(np.linspace(math.log(3 / 4), math.log(4 / 3), 1024) / 2).astype(np.float32)  # roots of aspect ratios


def resized_box(bits: Any, smallest: float, height: int, width: int, xp: Any = np) -> tuple[Any, Any, Any, Any]:
    """Returns the boxes of torchvision's RandomResizedCrop, with aspect ratios from 3/4 to 4/3.

    The box is the first of ATTEMPTS random ones that fits into the image, or else a central one.

    Args:
      bits: Random words [batch, WORDS] uint32.
      smallest: Smallest fraction of the image's area; the largest is 1.
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      xp: numpy, or jax.numpy on the device.

    Returns:
      Top, left, height and width of each crop in pixels, [batch] int32.
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
    """Returns height and width of the crop if no attempt fits: the largest one with a ratio from 3/4 to 4/3."""
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width
    return height, min(width, round(height * 4 / 3))


def middle_box(height: int, width: int, part: float = 224 / 256) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the central square that evaluation uses.

    It is 7/8 of the shorter side, as in the usual evaluation on ImageNet, which resizes the shorter side to 256 and
    crops the central 224 pixels.

    Args:
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      part: Side of the square as a fraction of the shorter side.
    """
    side = max(1, round(min(height, width) * part))
    return (height - side) // 2, (width - side) // 2, side, side
