"""What a network sees of stored images: a view of them on the device (`kdjax.data.views`), then units."""

from collections.abc import Mapping

import jax.numpy as jnp

from kdjax.data import mixing, views
from kdjax.data.dataset import Stored
from kdjax.data.geometry import padding
from kdjax.data.resample import resize
from kdjax.types import Array, Batch

__all__ = ["materialize", "mixed", "normalise", "padding", "render", "resize"]

_draw = views.draw_crop


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
      view: as `views.parse` takes it, without a mix, such as 'crop_flip' or 'rrc_flip+randaugment:2,10'.
      stored: how a stored value is normalised, and the size to which images are resized.
      train: False shows the images as they are, whatever the view.

    Returns:
      [batch, ...] in jax's default float type.
    """
    images = jnp.asarray(images)
    if train and view != "none":
        values = views.show(images, rows, example, epoch, seed, view=views.parse(view), size=stored.size)
    else:
        values = images[rows]
    return normalise(resize(values, stored.size) if stored.size else values, stored)


def mixed(
    images: Array,
    batch: tuple[Array, Array],
    partner: tuple[Array, Array],
    epoch: Array,
    seed: Array,
    *,
    view: str,
    stored: Stored,
) -> tuple[Array, Array]:
    """Returns views mixed with those of partners, each seen as it is seen alone, and each example's part in them.

    Args:
      images: [rows, height, width, channels] in the stored type.
      batch: rows of `images` and indices in the full set, [batch] each, as in `render`.
      partner: likewise, of `mixing.partners`.
      epoch, seed: as in `render`.
      view: with a mix, such as 'crop_flip+mixup:1'.
      stored: as in `render`.

    Returns:
      images [batch, ...] as of `render`, and kept [batch] in [0, 1]: labels and soft targets mix as
      kept * own + (1 - kept) * partner's.
    """
    base, mix = views.parse(view), views.parse(view).mix
    images = jnp.asarray(images)
    own, other = (
        normalise(views.show(images, *who, epoch, seed, view=base, size=stored.size), stored)
        for who in (batch, partner)
    )
    return mixing.mix(own, other, batch[1], epoch, seed, mix=mix, alpha=base.alpha)


def normalise(values: Array, stored: Stored) -> Array:
    """Returns (values * scale - mean) / std in jax's default float type, for values [..., channels or dim]."""
    mean, std = (jnp.asarray(part, jnp.result_type(float)) for part in (stored.mean, stored.std))
    return (values.astype(mean.dtype) * stored.scale - mean) / std
