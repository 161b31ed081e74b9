"""What a network sees of stored images: order, padded crop and flip in one gather on the device, then units."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.data.dataset import Stored
from kdjax.types import Array, Batch


def materialize(arrays: Mapping[str, Array] | None, batch: Batch) -> tuple[Array, Array, Array, Array | None]:
    """Makes resident and streamed batches alike.

    Args:
      arrays: the resident set, 'images' [rows, ...], 'labels' [rows] and perhaps 'soft' [rows, classes];
        None for a stream.
      batch: with indices, and with arrays where it is streamed.

    Returns:
      images [rows or batch, ...] in the stored type, rows [batch] of them that the batch reads, labels [batch] int32,
      and soft [batch, classes] or None.
    """
    if batch.images is not None:
        return batch.images, jnp.arange(batch.index.shape[0], dtype=jnp.int32), batch.labels, batch.soft
    soft = arrays.get("soft")
    labels = jnp.asarray(arrays["labels"])[batch.index]
    return arrays["images"], batch.index, labels, None if soft is None else jnp.asarray(soft)[batch.index]


def render(
    images: Array, rows: Array, example: Array, epoch: Array, seed: Array, *, view: str, stored: Stored, train: bool
) -> Array:
    """Returns normalised images, augmented when training; pure, with seed and epoch traced or not.

    Args:
      images: [rows, height, width, channels] or [rows, dim] in the stored type.
      rows: [batch] which of them to read.
      example: [batch] their indices in the full set, which their random keys are made of.
      epoch: [] integer.
      seed: [] integer in [0, 2^32).
      view: 'none', 'crop' (padded by an eighth of the size with stored zeros, 4 pixels at 32, then cropped back) or
        'crop_flip' (every second one mirrored as well).
      stored: how a stored value is normalised.
      train: False shows the images as they are, whatever the view.

    Returns:
      [batch, ...] in jax's default float type, resized last where `stored` has a size.
    """
    images = jnp.asarray(images)
    if train and view != "none":
        values = _gather(images, rows, example, epoch, seed, flip=view == "crop_flip")
    else:
        values = images[rows]
    return normalise(resize(values, stored.size) if stored.size else values, stored)


def resize(values: Array, size: int) -> Array:
    """Returns images resized to [batch, size, size, channels] by Pillow's bicubic filter (a = -1/2).

    Args:
      values: [batch, height, width, channels] in the stored type; bytes are rounded after each direction, as Pillow
        does it, and stay bytes.
      size: above 0.
    """
    batch, height, width, channels = values.shape
    if (height, width) == (size, size):
        return values
    out = values.astype(jnp.result_type(float))
    for shape in ((batch, height, size, channels), (batch, size, size, channels)):
        out = jax.image.resize(out, shape, "cubic", precision=jax.lax.Precision.HIGHEST)
        if values.dtype == jnp.uint8:
            out = jnp.clip(jnp.floor(out + 0.5), 0, 255)
    return out.astype(values.dtype)


def normalise(values: Array, stored: Stored) -> Array:
    """Returns (values * scale - mean) / std in jax's default float type, for values [..., channels or dim]."""
    mean, std = (jnp.asarray(part, jnp.result_type(float)) for part in (stored.mean, stored.std))
    return (values.astype(mean.dtype) * stored.scale - mean) / std


def padding(size: int) -> int:
    """Returns by how many pixels a side of `size` pixels is padded before a crop: 4 at 32 as for CIFAR, 1 at 8."""
    return max(1, size // 8)


def _gather(images: Array, rows: Array, example: Array, epoch: Array, seed: Array, flip: bool) -> Array:
    height, width = images.shape[1:3]
    top, left, mirrored = _draw(example, epoch, seed, padding(height), padding(width))
    y = jnp.arange(height, dtype=jnp.int32) + top[:, None]  # [batch, height], outside the image in the padding
    x = jnp.arange(width, dtype=jnp.int32) + left[:, None]
    if flip:
        x = jnp.where(mirrored[:, None], x[:, ::-1], x)
    inside = ((0 <= y) & (y < height))[:, :, None, None] & ((0 <= x) & (x < width))[:, None, :, None]
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    return jnp.where(inside, images[rows[:, None, None], y[:, :, None], x[:, None, :]], 0)


def _draw(example: Array, epoch: Array, seed: Array, pad_y: int, pad_x: int) -> tuple[Any, Any, Any]:
    """Draws each example's crop offset in [-pad, pad] and whether it is mirrored, from (seed, epoch, example) alone."""
    # Named, since other generators give other bits under vmap; uint32, so that x64 does not change the key.
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(key, epoch)
    bits = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (3,), jnp.uint32))(example)
    top, left = ((bits[:, i] % (2 * pad + 1)).astype(jnp.int32) - pad for i, pad in enumerate((pad_y, pad_x)))
    return top, left, bits[:, 2] >> 31 == 1
