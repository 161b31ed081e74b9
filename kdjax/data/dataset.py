"""What a data set is: arrays in their stored type, row indices of each split, and how a stored value is normalised."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kdjax.data.encoded import Encoded
from kdjax.data.views import names as view_names
from kdjax.errors import UserError


class Stored(NamedTuple):
    """How images lie in memory; hashable, since it shapes a compiled step.

    Attributes:
      scale: what one unit of the stored type is worth, 1/255 for bytes.
      mean: one float, or one a channel, of the scaled values.
      std: likewise, above 0: a stored value v is seen by a network as (v * scale - mean) / std.
      views: the first is the default; where none of them mirrors, no view may.
      size: side to which images are resized, 0 for none.
      kernel: by which they are, 'bicubic' or 'bilinear'.
      cropped: whether images come from the stream already cropped and resized to `size`.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: tuple[str, ...]
    size: int = 0
    kernel: str = "bicubic"
    cropped: bool = False


class Rows(NamedTuple):
    """What a source returns: the official training rows first, then the official test rows.

    Attributes:
      images: [rows, height, width, channels] or [rows, dim], uint8, float32 or float64; or images that stay encoded.
      labels: [rows] integers in [0, num_classes).
      soft: [rows, num_classes] target distributions, or None.
      num_classes: at least 2.
      num_train: how many rows come before the official test rows; None where there are none, and then a test split is
        drawn by config.data.split_seed.
      test: fraction of all rows in such a drawn test split, in [0, 1).
      class_names: of every class, or None.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray
    soft: np.ndarray | None
    num_classes: int
    num_train: int | None = None
    test: float = 0.2
    class_names: tuple[str, ...] | None = None


class Source(NamedTuple):
    """A row of DATASETS; what is None follows from the arrays (see `kdjax.data.sources`).

    Attributes:
      load: `(data_dir, **config.data.args) -> Rows`.
      scale, mean, std, views: as in `Stored`.
      shape, num_classes: of one image and of its labels, where they are known without the files.
    """

    load: Callable[..., Rows]
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    views: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, in memory but for images that stay encoded; a row's index is the 'example' of every random key.

    Attributes:
      name: as in config.data.name.
      images: [rows, height, width, channels] or [rows, dim] in the stored type, or images that stay encoded.
      labels: [rows] int32, -1 where a protocol took the label away.
      soft: [rows, num_classes] target distributions, or None.
      num_classes: at least 2.
      splits: 'train', 'validation', 'test' -> [size] int32, sorted rows; a split without rows is absent.
      stored: how a stored value is normalised, and the views there are.
      class_names: of every class, or None.
      image_shape: of one image as it is stored; () where `images` tells.
      epoch_examples: how many training examples make an epoch; None for all that there are.
      unseen: classes that no training batch shows.
      labelled_share: part of every batch that has labels where some training examples lost theirs.
      protocols: what each protocol did, for the manifest.
      streamed: whether batches carry their images, instead of reading them from the devices' memory.
      skip_bad: whether a stream skips and counts images that cannot be read.
    """

    name: str
    images: np.ndarray | Encoded
    labels: np.ndarray
    soft: np.ndarray | None
    num_classes: int
    splits: Mapping[str, np.ndarray]
    stored: Stored
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] = ()
    epoch_examples: int | None = None
    unseen: tuple[int, ...] = ()
    labelled_share: float = 0.5
    protocols: tuple[dict, ...] = ()
    streamed: bool = False
    skip_bad: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of one image as a batch carries it."""
        return self.image_shape or self.images.shape[1:]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image as a network sees it: (height, width, channels) or (dim,)."""
        size = self.stored.size
        return (size, size, self.stored_shape[-1]) if size else self.stored_shape

    @property
    def dtype(self) -> np.dtype:
        """Of stored values."""
        return np.dtype(np.uint8) if isinstance(self.images, Encoded) else self.images.dtype

    @property
    def labelled_train(self) -> np.ndarray:
        """[size] training rows that have a label."""
        train = self.splits["train"]
        return train[self.labelled[train]]

    @property
    def labelled(self) -> np.ndarray:
        """[rows] bool, False where a protocol took the label away."""
        return self.labels >= 0


def resolve_view(dataset: Dataset, view: str, field: str = "config.data.view") -> str:
    """Returns the view that training uses.

    Args:
      dataset: that has a default view and tells whether its images may be mirrored.
      view: config.data.view; '' for the default.
      field: that it is from, for the message.

    Raises:
      UserError: the data does not allow the view.
    """
    allowed = dataset.stored.views
    where = f"{field} '{view}'"
    parsed = view_names.check(view or allowed[0], dataset.stored_shape, dataset.dtype, where)
    mirrors = any(view_names.parse(name).flip for name in allowed)
    if view not in ("", *allowed) and parsed.flip and not mirrors:
        raise UserError(f"{where}: images of data set '{dataset.name}' are not to be mirrored.")
    return view or allowed[0]


def check_rows(rows: Rows, where: str) -> Rows:
    """Returns rows of NumPy arrays with int32 labels, or says in one line what is wrong with what a source returned."""
    if not isinstance(rows, Rows):
        raise UserError(f"{where} must return kdjax.data.Rows, not {type(rows).__name__}.")
    soft = None if rows.soft is None else np.asarray(rows.soft)
    images = rows.images if isinstance(rows.images, Encoded) else np.asarray(rows.images)
    rows = rows._replace(images=images, labels=np.asarray(rows.labels), soft=soft)
    if not isinstance(images, Encoded):
        _check_images(images, where)
    elif not len(images):
        raise UserError(f"{where} has no images.")
    _check_labels(rows, where)
    if rows.soft is not None:
        _check_soft(rows, where)
    if rows.num_train is not None and not 0 < rows.num_train <= len(rows.images):
        raise UserError(f"{where}: num_train must be in [1, {len(rows.images)}], not {rows.num_train}.")
    if not 0 <= rows.test < 1:
        raise UserError(f"{where}: the fraction 'test' must be in [0, 1), not {rows.test}.")
    if rows.class_names is not None and len(rows.class_names) != rows.num_classes:
        raise UserError(
            f"{where}: {len(rows.class_names)} class_names for {rows.num_classes} classes; name each or none."
        )
    return rows._replace(labels=rows.labels.astype(np.int32))


def check_stored(stored: Stored, shape: tuple[int, ...], where: str) -> Stored:
    """Returns hashable `stored` for images of a shape, or says in one line what is wrong with it."""
    mean, std = (tuple(float(value) for value in np.ravel(part)) for part in (stored.mean, stored.std))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels := shape[-1]):
            raise UserError(f"{where}: {name} must have 1 value or {channels}, one a channel, not {len(values)}.")
    if min(std) <= 0 or stored.scale <= 0:
        raise UserError(f"{where}: scale and std must be above 0, not {stored.scale} and {std}.")
    for view in stored.views:
        if len(shape) == 1 and view_names.parse(view) != view_names.View():
            raise UserError(f"{where} has vectors [rows, dim]; the only view of those is 'none', not '{view}'.")
    return stored._replace(scale=float(stored.scale), mean=mean, std=std, views=tuple(stored.views))


def _check_images(images: np.ndarray, where: str) -> None:
    if images.ndim not in (2, 4) or 0 in images.shape:
        shape = list(images.shape)
        raise UserError(f"{where}: images must be [rows, height, width, channels] or vectors [rows, dim], not {shape}.")
    if images.dtype not in (np.uint8, np.float32, np.float64):
        raise UserError(f"{where}: images must be uint8, float32 or float64, not {images.dtype}.")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise UserError(f"{where}: images hold values that are not finite.")


def _check_labels(rows: Rows, where: str) -> None:
    labels = rows.labels
    if labels.shape != (len(rows.images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels must be integers [{len(rows.images)}], one an image, "
            f"not {labels.dtype} {list(labels.shape)}."
        )
    if rows.num_classes < 2:
        raise UserError(f"{where}: there must be at least 2 classes, not {rows.num_classes}.")
    if labels.min() < 0 or labels.max() >= rows.num_classes:
        raise UserError(
            f"{where}: labels must be in [0, {rows.num_classes - 1}], but go from {labels.min()} to {labels.max()}."
        )


def _check_soft(rows: Rows, where: str) -> None:
    soft, shape = rows.soft, (len(rows.images), rows.num_classes)
    if soft.shape != shape or soft.dtype not in (np.float32, np.float64):
        raise UserError(f"{where}: soft must be float32 or float64 {list(shape)}, not {soft.dtype} {list(soft.shape)}.")
    if not (soft >= 0).all() or not np.allclose(soft.sum(axis=1), 1, atol=1e-3):
        raise UserError(f"{where}: every row of soft must be a distribution: not negative, with sum 1.")
