"""A picture of a config's views: what the networks are shown, image by image and visit by visit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import randomness
from kdjax.data import Dataset
from kdjax.data.stream import make_reader
from kdjax.data.views import augment
from kdjax.data.views import names as view_names

GAP, LEAST_SIDE = 2, 64  # pixels between images, and to which small ones are magnified


def contact_sheet(dataset: Dataset, views: Sequence[str], seed: int, images: int = 8, visits: int = 6):
    """Returns a Pillow image: a row an example; the image as evaluation sees it, then each view at several visits.

    Args:
      dataset: of images.
      views: names, one band of columns each.
      seed: of the run whose views these are.
      images: rows, from the beginning of the training split.
      visits: columns a view.
    """
    from PIL import Image

    rows = dataset.splits["train"][np.linspace(0, len(dataset.splits["train"]) - 1, images).astype(int)]
    columns = [shown(dataset, rows, 0, seed, "none", train=False)]
    columns += [shown(dataset, rows, visit, seed, view, train=True) for view in views for visit in range(visits)]
    grid = np.stack(columns, axis=1)  # [images, columns, height, width, channels]
    factor = max(1, -(-LEAST_SIDE // grid.shape[2]))
    grid = grid.repeat(factor, axis=2).repeat(factor, axis=3)
    grid = np.pad(grid, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    images, columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(images * height, columns * width, channels)
    return Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)


def shown(dataset: Dataset, rows: np.ndarray, visit: int, seed: int, view: str, train: bool) -> np.ndarray:
    """Returns what a network is shown, taken back to what a screen shows: [images, height, width, channels] uint8.

    Args:
      dataset: of images.
      rows: [images], indices in the full set.
      visit: of the view.
      seed: of the view.
      view: its name, 'none' for images as evaluation sees them.
      train: whether the view is drawn.
    """
    parsed, stored = view_names.parse(view), dataset.stored
    reader = make_reader(dataset, parsed.smallest if train and parsed.crop == "resized" else 0.0)
    visits = np.full(len(rows), visit, np.int32) if train else None
    here = jnp.arange(len(rows))
    held = jnp.asarray(reader.read(rows, visits, seed).images)
    options = {"view": view, "stored": stored}
    if parsed.mix:
        partner = randomness.partners(dataset.splits["train"], rows, visits, seed)
        both = jnp.concatenate([held, jnp.asarray(reader.read(partner, visits, seed).images)])
        mixed = jax.jit(lambda *args: augment.mixed(*args, **options)[0])
        seen = mixed(both, (here, rows), (here + len(rows), partner), visit, np.uint32(seed))
    else:
        render = jax.jit(lambda *args: augment.render(*args, train=train, **options))
        seen = render(held, here, rows, visit, np.uint32(seed))
    values = (np.asarray(seen) * stored.std + stored.mean) / stored.scale
    if dataset.dtype == np.uint8 and stored.scale == 1 / 255:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    low, high = float(dataset.images.min()), float(dataset.images.max())
    return np.clip(255 * (values - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)
