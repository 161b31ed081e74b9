"""Operations of Pillow's ImageOps and ImageEnhance on batches of bytes; each example has its own operation and amount.

Everything is computed in integers, or in floats that hold integers, so that the result has the same bits on any number
of devices. If an exact result is an integer, it is that integer here, where Pillow's rounding may give the one below.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array

THOUSAND = 1000  # the integer of a factor 1, which does not change an image


def brightness(images: Array, amount: Array) -> Array:
    """Returns images blended with black. Amount [batch] is in thousandths; 0 gives black."""
    return _blend(jnp.zeros((), jnp.int32), images, amount)


def contrast(images: Array, amount: Array) -> Array:
    """Returns images blended with their mean grey. Amount [batch] is in thousandths; 0 gives that grey."""
    grey = _grey(images)
    count = grey.shape[1] * grey.shape[2]
    mean = (2 * jnp.sum(grey, axis=(1, 2, 3), keepdims=True, dtype=jnp.int32) + count) // (2 * count)
    return _blend(mean, images, amount)


def colour(images: Array, amount: Array) -> Array:
    """Returns images blended with their grey versions. Amount [batch] is in thousandths; 0 gives a grey image."""
    return _blend(_grey(images), images, amount)


def sharpness(images: Array, amount: Array) -> Array:
    """Returns images blended with smoothed ones. Amount [batch] is in thousandths; 0 gives a smoothed image."""
    x = images.astype(jnp.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    smooth = jnp.asarray(x).at[:, 1:-1, 1:-1].set((2 * around + 13) // 26)  # the edges do not change
    return _blend(smooth, images, amount)


def posterize(images: Array, amount: Array) -> Array:
    """Returns images of which only the first `amount` [batch] bits, 1 to 8, are kept."""
    dropped = _spread(8 - amount).astype(jnp.uint8)
    return (images >> dropped) << dropped


def solarize(images: Array, amount: Array) -> Array:
    """Returns images in which values of at least `amount` [batch], in [0, 256], are inverted."""
    return jnp.where(images.astype(jnp.int32) < _spread(amount), images, 255 - images)


def solarize_add(images: Array, amount: Array) -> Array:
    """Returns images in which `amount` [batch] is added to values below 128, clipped to bytes."""
    raised = jnp.clip(images.astype(jnp.int32) + _spread(amount), 0, 255).astype(jnp.uint8)
    return jnp.where(images < 128, raised, images)


def invert(images: Array, amount: Array) -> Array:
    """Returns negatives of images. The amount is not used."""
    return 255 - images


def autocontrast(images: Array, amount: Array) -> Array:
    """Returns images whose channels are stretched to the range 0 to 255, unless all values are equal.

    The amount is not used.
    """
    x = images.astype(jnp.int32)
    low, high = (part(x, axis=(1, 2), keepdims=True) for part in (jnp.min, jnp.max))
    stretched = _ratio((x - low) * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def equalize(images: Array, amount: Array) -> Array:
    """Returns images whose channels have equalized histograms. The amount is not used."""
    batch, height, width, channels = images.shape
    flat = images.transpose(0, 3, 1, 2).reshape(batch * channels, -1).astype(jnp.int32)
    table = _equalizing(flat)
    values = jnp.take_along_axis(table, flat, axis=1).astype(jnp.uint8)
    return values.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)


def _equalizing(flat: Array) -> Array:
    """Returns the new value of each byte, [rows, 256], for bytes [rows, pixels]."""
    rows, pixels = flat.shape
    counts = jnp.zeros((rows, 256), jnp.int32).at[jnp.arange(rows)[:, None], flat].add(1)
    last = jnp.take_along_axis(counts, jnp.max(flat, axis=1, keepdims=True), axis=1)  # pixels of the largest value
    step = (pixels - last) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256))


# Name -> function of images [batch, height, width, 1 or 3] uint8 and amount [batch] int32 that returns images.
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
    """Applies one operation to each image.

    Args:
      images: Images [batch, height, width, 1 or 3] uint8.
      code: Value of CODES for each image, or NOTHING for no operation, [batch] int32.
      amount: Amount of each operation in its unit, [batch] int32.
      names: Names of the operations that may occur.
    """
    # On CPU, each example computes only its own operation. Elsewhere, branching costs more than computing all of them.
    together, apart = (functools.partial(way, names) for way in (_all_at_once, _one_by_one))
    return jax.lax.platform_dependent(images, code, amount, cpu=apart, default=together)


def _all_at_once(names: tuple[str, ...], images: Array, code: Array, amount: Array) -> Array:
    out = images
    for name in names:
        out = jnp.where(_spread(code) == CODES[name], OPERATIONS[name](images, amount), out)
    return out


def _one_by_one(names: tuple[str, ...], images: Array, code: Array, amount: Array) -> Array:
    branches = [lambda image, _: image, *(functools.partial(_single, OPERATIONS[name]) for name in names)]
    branch = np.zeros(len(OPERATIONS) + 1, np.int32)  # NOTHING is -1, hence the last entry
    branch[[CODES[name] for name in names]] = np.arange(len(names)) + 1
    chosen = jnp.asarray(branch)[code]
    return jax.lax.map(lambda one: jax.lax.switch(one[1], branches, one[0], one[2]), (images, chosen, amount))


def _single(operation: Callable[[Array, Array], Array], image: Array, amount: Array) -> Array:
    return operation(image[None], amount[None])[0]


def _blend(other: Array, images: Array, amount: Array) -> Array:
    """Returns other + amount * (images - other), clipped to bytes."""
    factor = _spread(amount)
    total = THOUSAND * other + factor * (images.astype(jnp.int32) - other)  # below 2^24, hence exact as a float
    # Half a thousandth is added, so that no rounding error makes an integer smaller.
    value = jnp.floor((total.astype(jnp.float32) + 0.5) * np.float32(1 / THOUSAND))
    return jnp.clip(value, 0, 255).astype(jnp.uint8)


def _grey(images: Array) -> Array:
    """Returns Pillow's luma, [batch, height, width, 1] int32."""
    if images.shape[-1] == 1:
        return images.astype(jnp.int32)
    red, green, blue = (images[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _ratio(top: Array, bottom: Array) -> Array:
    """Returns top // bottom for integers below 2^20, without slow integer division."""
    return jnp.floor((top.astype(jnp.float32) + 0.5) / bottom.astype(jnp.float32)).astype(jnp.int32)


def _spread(amount: Array) -> Array:
    return amount[:, None, None, None]
