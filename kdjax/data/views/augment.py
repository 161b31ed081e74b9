"""Turns stored images into the input of a network on the device: selects rows, augments, resizes and normalises."""

from collections.abc import Mapping

import jax.numpy as jnp

from kdjax.data.dataset import Stored
from kdjax.data.views import mixing
from kdjax.data.views import names as view_names
from kdjax.data.views import transform as views
from kdjax.data.views.geometry import padding
from kdjax.data.views.resize import resize
from kdjax.types import Array, Batch, MaterializedBatch

__all__ = ["materialize", "mixed", "normalise", "padding", "render", "resize"]


def materialize(arrays: Mapping[str, Array] | None, batch: Batch) -> MaterializedBatch:
    """Returns the arrays of a batch, in the same form for resident and streamed data.

    Args:
      arrays: Resident arrays: 'images' [rows, ...], 'labels' [rows] and perhaps 'soft' [rows, classes]; None if the
        data is streamed.
      batch: Batch of rows; if the data is streamed, with its images and targets.
    """
    return _read(arrays, batch, batch.index, 0)


def materialize_partners(arrays: Mapping[str, Array] | None, batch: Batch) -> MaterializedBatch:
    """Returns the arrays of the examples with which the examples of a batch are mixed.

    Args:
      arrays: Resident arrays, as for `materialize`; None if the data is streamed.
      batch: Batch with partners.
    """
    return _read(arrays, batch, batch.partner, batch.index.shape[0])


def _read(arrays: Mapping[str, Array] | None, batch: Batch, index: Array, first: int) -> MaterializedBatch:
    """Reads the rows `index` of resident arrays, or a streamed batch from its example `first` on."""
    if arrays is not None and batch.images is None:
        soft = arrays.get("soft")
        labels = jnp.asarray(arrays["labels"])[index]
        return MaterializedBatch(arrays["images"], index, labels, None if soft is None else jnp.asarray(soft)[index])
    rows = jnp.arange(first, first + batch.index.shape[0], dtype=jnp.int32)
    soft = None if batch.soft is None else batch.soft[rows]
    return MaterializedBatch(batch.images, rows, batch.labels[rows], soft)


def render(
    images: Array, rows: Array, example: Array, epoch: Array, seed: Array, *, view: str, stored: Stored, train: bool
) -> Array:
    """Returns normalised images, augmented if `train`. A pure function of its arguments.

    Args:
      images: Images [rows, height, width, channels] or vectors [rows, dim] in the stored type.
      rows: Rows of `images` to use, [batch].
      example: Row of each example in the full data set, [batch]; its random key is made from it.
      epoch: Number of the pass over the data, integer [] or [batch]; traced or not.
      seed: Seed of the run, integer [] in [0, 2^32); traced or not.
      view: Name of the view, such as 'crop_flip' or 'rrc_flip+randaugment:2,10', without a mix.
      stored: How stored values are normalised, and the size to which images are resized.
      train: Whether to augment the images. If False, the view has no effect.

    Returns:
      Images [batch, ...] in jax's default float type.
    """
    images = jnp.asarray(images)
    if train and view != "none":
        return normalise(
            views.show(images, rows, example, epoch, seed, view=_parse(view, stored), stored=stored), stored
        )
    values = images[rows]
    return normalise(resize(values, stored.size, stored.kernel) if stored.size else values, stored)


def _parse(view: str, stored: Stored) -> view_names.View:
    """Returns the view without a resized crop if the stream has already made it."""
    parsed = view_names.parse(view)
    return parsed._replace(crop="") if stored.cropped and parsed.crop == "resized" else parsed


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
    """Returns views that are mixed with the views of partners, and the fraction of each that is its own.

    Both views are the same as without mixing.

    Args:
      images: Images [rows, height, width, channels] in the stored type.
      batch: The examples: their rows in `images` [batch] and their rows in the full data set [batch].
      partner: The same for their partners.
      epoch: Number of the pass over the data, integer [] or [batch]; traced or not.
      seed: Seed of the run, integer [] in [0, 2^32); traced or not.
      view: Name of a view with a mix, such as 'crop_flip+mixup:1'.
      stored: How stored values are normalised, and the size to which images are resized.

    Returns:
      Images [batch, ...] in jax's default float type, and the fractions kept [batch] in [0, 1]. Labels and soft targets
      are mixed in the same way: kept * own + (1 - kept) * partner's.
    """
    base = _parse(view, stored)
    images = jnp.asarray(images)
    own, other = (
        normalise(views.show(images, *who, epoch, seed, view=base, stored=stored), stored) for who in (batch, partner)
    )
    return mixing.mix(own, other, batch[1], epoch, seed, mix=base.mix, alpha=base.alpha)


def normalise(values: Array, stored: Stored) -> Array:
    """Returns (values * scale - mean) / std in jax's default float type, for values [..., channels or dim]."""
    mean, std = (jnp.asarray(part, jnp.result_type(float)) for part in (stored.mean, stored.std))
    return (values.astype(mean.dtype) * stored.scale - mean) / std
