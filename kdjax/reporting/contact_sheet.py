"""A contact sheet of a config's views: images as the networks receive them, example by example and visit by visit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import randomness
from kdjax.data import Dataset
from kdjax.data.stream import make_reader
from kdjax.data.views import augment
from kdjax.data.views import names as view_names

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2  # pixels between images
LEAST_SIDE = 64  # height in pixels to which smaller images are magnified


def contact_sheet(dataset: Dataset, views: Sequence[str], seed: int, images: int = 8, visits: int = 6) -> "Image":
    """Draws one row for each example: the image of evaluation, then each view at several visits.

    Args:
      dataset: Data set of images.
      views: Names of views.
      seed: Seed of the run whose views are drawn.
      images: Number of rows, spread evenly over the training split.
      visits: Number of columns for each view.
    """
    from PIL import Image

    rows = dataset.splits["train"][np.linspace(0, len(dataset.splits["train"]) - 1, images).astype(int)]
    columns = [view_images(dataset, rows, 0, seed, "none", train=False)]
    columns += [view_images(dataset, rows, visit, seed, view, train=True) for view in views for visit in range(visits)]
    grid = np.stack(columns, axis=1)  # [images, columns, height, width, channels]
    factor = max(1, -(-LEAST_SIDE // grid.shape[2]))
    grid = grid.repeat(factor, axis=2).repeat(factor, axis=3)
    grid = np.pad(grid, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    images, columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(images * height, columns * width, channels)
    return Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)


def view_images(dataset: Dataset, rows: np.ndarray, visit: int, seed: int, view: str, train: bool) -> np.ndarray:
    """Returns images under a view, converted back to pixels, uint8 [images, height, width, channels].

    Args:
      dataset: Data set of images.
      rows: Indices of the images in the full data set [images].
      visit: Number of the visit that the view is drawn for.
      seed: Seed of the view.
      view: Name of the view, 'none' for the images of evaluation.
      train: Whether the view is drawn, as in training.
    """
    return _pixels(dataset, _network_inputs(dataset, rows, visit, seed, view, train))


def _network_inputs(dataset: Dataset, rows: np.ndarray, visit: int, seed: int, view: str, train: bool) -> np.ndarray:
    """Returns the images as a network receives them."""
    parsed, options = view_names.parse(view), {"view": view, "stored": dataset.stored}
    reader = make_reader(dataset, parsed.smallest if train and parsed.crop == "resized" else 0.0)
    visits = np.full(len(rows), visit, np.int32) if train else None
    here = jnp.arange(len(rows))
    images = jnp.asarray(reader.read(rows, visits, seed).images)
    if not parsed.mix:
        render = jax.jit(lambda *args: augment.render(*args, train=train, **options))
        return np.asarray(render(images, here, rows, visit, np.uint32(seed)))
    partner = randomness.partners(dataset.splits["train"], rows, visits, seed)
    both = jnp.concatenate([images, jnp.asarray(reader.read(partner, visits, seed).images)])
    mixed = jax.jit(lambda *args: augment.mixed(*args, **options)[0])
    return np.asarray(mixed(both, (here, rows), (here + len(rows), partner), visit, np.uint32(seed)))


def _pixels(dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Reverts the normalisation; values that are not bytes in the data set are rescaled to its range."""
    values = (images * dataset.stored.std + dataset.stored.mean) / dataset.stored.scale
    if dataset.dtype == np.uint8 and dataset.stored.scale == 1 / 255:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    low, high = float(dataset.images.min()), float(dataset.images.max())
    return np.clip(255 * (values - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)
