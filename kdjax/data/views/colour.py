"""Pillow's ImageOps and ImageEnhance on a batch of bytes, each example with its own operation and amount.

All in whole numbers, or in floats that hold whole numbers: the same bits on any device count. A result that falls on
a whole number exactly is that number, where Pillow's rounding may give the one below.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array

THOUSAND = 1000  # the unit of a factor: 1000 leaves an image as it is


def brightness(images: Array, amount: Array) -> Array:
    """Returns images blended with black; amount [batch]: thousandths, 0 for black."""
    return _blend(jnp.zeros((), jnp.int32), images, amount)


def contrast(images: Array, amount: Array) -> Array:
    """Returns images blended with their mean grey; amount [batch]: thousandths, 0 for that grey."""
    grey = _grey(images)
    count = grey.shape[1] * grey.shape[2]
    mean = (2 * jnp.sum(grey, axis=(1, 2, 3), keepdims=True, dtype=jnp.int32) + count) // (2 * count)
    return _blend(mean, images, amount)


def colour(images: Array, amount: Array) -> Array:
    """Returns images blended with their grey selves; amount [batch]: thousandths, 0 for grey."""
    return _blend(_grey(images), images, amount)


def sharpness(images: Array, amount: Array) -> Array:
    """Returns images blended with their smoothed selves; amount [batch]: thousandths, 0 for smooth."""
    x = images.astype(jnp.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    smooth = jnp.asarray(x).at[:, 1:-1, 1:-1].set((2 * around + 13) // 26)  # edges stay
    return _blend(smooth, images, amount)


def posterize(images: Array, amount: Array) -> Array:
    """Returns images of which only the first `amount` [batch] bits, from 1 to 8, are kept."""
    dropped = _spread(8 - amount).astype(jnp.uint8)
    return (images >> dropped) << dropped


def solarize(images: Array, amount: Array) -> Array:
    """Returns images whose values from `amount` [batch] on, in [0, 256], are inverted."""
    return jnp.where(images.astype(jnp.int32) < _spread(amount), images, 255 - images)


def solarize_add(images: Array, amount: Array) -> Array:
    """Returns images whose values below 128 are raised by `amount` [batch], cut off to bytes."""
    raised = jnp.clip(images.astype(jnp.int32) + _spread(amount), 0, 255).astype(jnp.uint8)
    return jnp.where(images < 128, raised, images)


def invert(images: Array, amount: Array) -> Array:
    """Returns negatives."""
    return 255 - images


def autocontrast(images: Array, amount: Array) -> Array:
    """Returns images of which every channel goes from 0 to 255; a channel of one value stays."""
    x = images.astype(jnp.int32)
    low, high = (part(x, axis=(1, 2), keepdims=True) for part in (jnp.min, jnp.max))
    stretched = _ratio((x - low) * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def equalize(images: Array, amount: Array) -> Array:
    """Returns images of which every channel has a histogram as flat as a table of values makes it."""
    batch, height, width, channels = images.shape
    flat = images.transpose(0, 3, 1, 2).reshape(batch * channels, -1).astype(jnp.int32)
    table = _equalizing(flat)
    values = jnp.take_along_axis(table, flat, axis=1).astype(jnp.uint8)
    return values.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)


def _equalizing(flat: Array) -> Array:
    """[rows, pixels] of bytes -> [rows, 256], what each value becomes."""
    rows, pixels = flat.shape
    counts = jnp.zeros((rows, 256), jnp.int32).at[jnp.arange(rows)[:, None], flat].add(1)
    last = jnp.take_along_axis(counts, jnp.max(flat, axis=1, keepdims=True), axis=1)  # how many pixels are brightest
    step = (pixels - last) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256))


# Name -> (images [batch, height, width, 1 or 3] uint8, amount [batch] int32) -> images.
OPERATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "brightness": brightness,
    "contrast": contrast,
    "colour": colour,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "invert": invert,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
CODES = {name: code for code, name in enumerate(OPERATIONS)}
NOTHING = -1  # the code of no operation


def apply(images: Array, code: Array, amount: Array, names: tuple[str, ...]) -> Array:
    """Returns images after one operation each.

    Args:
      images: [batch, height, width, 1 or 3] uint8.
      code: [batch] int32 of CODES, NOTHING for none.
      amount: [batch] int32 in the unit of the operation.
      names: operations that may occur.
    """
    # A CPU computes for each example its own operation only; elsewhere a branch costs more than what it spares.
    together, apart = (functools.partial(way, names) for way in (_all_at_once, _one_by_one))
    return jax.lax.platform_dependent(images, code, amount, cpu=apart, default=together)


def _all_at_once(names: tuple[str, ...], images: Array, code: Array, amount: Array) -> Array:
    out = images
    for name in names:
        out = jnp.where(_spread(code) == CODES[name], OPERATIONS[name](images, amount), out)
    return out


def _one_by_one(names: tuple[str, ...], images: Array, code: Array, amount: Array) -> Array:
    branches = [lambda image, _: image, *(functools.partial(_single, OPERATIONS[name]) for name in names)]
    branch = np.zeros(len(OPERATIONS) + 1, np.int32)  # its last place is NOTHING's
    branch[[CODES[name] for name in names]] = np.arange(len(names)) + 1
    chosen = jnp.asarray(branch)[code]
    return jax.lax.map(lambda one: jax.lax.switch(one[1], branches, one[0], one[2]), (images, chosen, amount))


def _single(operation: Callable[[Array, Array], Array], image: Array, amount: Array) -> Array:
    return operation(image[None], amount[None])[0]


def _blend(other: Array, images: Array, amount: Array) -> Array:
    """other + amount * (images - other), cut off to bytes."""
    factor = _spread(amount)
    total = THOUSAND * other + factor * (images.astype(jnp.int32) - other)  # below 2^24: a float holds it
    # Half a thousandth up, so that no rounding of the product takes a whole number below itself.
    value = jnp.floor((total.astype(jnp.float32) + 0.5) * np.float32(1 / THOUSAND))
    return jnp.clip(value, 0, 255).astype(jnp.uint8)


def _grey(images: Array) -> Array:
    """[batch, height, width, 1] int32, Pillow's luma."""
    if images.shape[-1] == 1:
        return images.astype(jnp.int32)
    red, green, blue = (images[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _ratio(top: Array, bottom: Array) -> Array:
    """top // bottom of whole numbers below 2^20, without the processor's slow division."""
    return jnp.floor((top.astype(jnp.float32) + 0.5) / bottom.astype(jnp.float32)).astype(jnp.int32)


def _spread(amount: Array) -> Array:
    return amount[:, None, None, None]
