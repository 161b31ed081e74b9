"""The records of a data set: what a source returns, what training reads, and how stored values are normalised."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from kdjax.data.content import Content, target_hashes
from kdjax.data.encoded import Encoded
from kdjax.data.views import names as view_names
from kdjax.errors import UserError

MOST_CLASSES = 1_000_000
FEW_CLASSES = 10  # of so few classes most may be without an example


class Stored(NamedTuple):
    """How stored images become the input of a network; hashable, since a compiled step depends on it.

    A network sees a stored value v as (v * scale - mean) / std.

    Attributes:
      scale: Factor for stored values, 1/255 for bytes; above 0.
      mean: Mean of the scaled values: one float, or one per channel.
      std: Standard deviation of the scaled values: one float, or one per channel; above 0.
      views: Names of the views that suit the images; the first is the default. If none of them flips images, views that
        flip are refused.
      size: Side in pixels to which images are resized; 0 for no resizing.
      kernel: Filter of resizing, 'bicubic' or 'bilinear'.
      cropped: Whether the stream delivers images that are already cropped and resized to `size`.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: tuple[str, ...]
    size: int = 0
    kernel: str = "bicubic"
    cropped: bool = False


class Rows(NamedTuple):
    """What a source returns: first the rows of the training set, then those of the test set, if there is one.

    Attributes:
      images: Images [rows, height, width, channels] or vectors [rows, dim] of uint8, float32 or float64; or encoded.
      labels: Integer labels [rows] in [0, num_classes).
      soft: Target distributions [rows, num_classes], or None.
      num_classes: Number of classes, at least 2.
      num_train: Number of training rows. None if there is no test set: a test split is then drawn with
        config.data.split_seed.
      test: Fraction of all rows that a drawn test split takes, in [0, 1).
      class_names: Name of every class, or None.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray
    soft: np.ndarray | None
    num_classes: int
    num_train: int | None = None
    test: float = 0.2
    class_names: tuple[str, ...] | None = None


class Source(NamedTuple):
    """A row of DATASETS. A field that is None gets a default that suits the arrays (see `kdjax.data.sources`).

    Attributes:
      load: Function `(data_dir, **config.data.args) -> Rows`.
      scale, mean, std, views: Same as in `Stored`.
      shape: Shape of one image, if it is known before the files are read.
      num_classes: Number of classes, if it is known before the files are read.
      official: Whether the publisher of the data set made its training and its test set. Images that are in both are
        then reported; in any other data set they are refused.
    """

    load: Callable[..., Rows]
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    views: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    official: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits. The row of an example is the 'example' that random keys are made from.

    Attributes:
      name: config.data.name.
      images: Images [rows, height, width, channels] or vectors [rows, dim] in the stored type, or encoded images.
      labels: Integer labels [rows] int32, -1 where a protocol removed the label.
      soft: Target distributions [rows, num_classes], or None.
      num_classes: Number of classes, at least 2.
      splits: 'train', 'validation', 'test' -> sorted rows [size] int32. A split without rows is absent.
      stored: How stored values are normalised, and which views suit the images.
      class_names: Name of every class, or None.
      image_shape: Shape of one stored image; () if `images` is an array, whose shape says it.
      epoch_examples: Number of training examples in an epoch; None for all of the training split.
      unseen: Classes that no training batch contains.
      labelled_share: Fraction of every batch that has labels, if some training examples have none.
      protocols: One record for every applied protocol, for the manifest.
      streamed: Whether batches carry their images; otherwise all images are in the memory of the devices.
      skip_bad: Whether a stream skips and counts images that cannot be read.
      official: Whether the publisher of the data set made its training and its test set.
      shared_test: Test rows [size] whose images are also in the training or validation split before any protocol; the
        evaluation reports the accuracy without them. None unless config.data.report_unshared.
      content: What the source returned, with its hashes; None for a data set that no source made.
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
    official: bool = False
    shared_test: np.ndarray | None = None
    content: Content | None = None

    @property
    def source_hashes(self) -> dict[str, str]:
        """Hashes of the images, labels and distributions that the source returned; {} if no source made the set."""
        return {} if self.content is None else self.content.hashes

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of what the source returned, and of the targets that protocols made of it."""
        changed = target_hashes(self.labels, self.soft) if self.protocols and self.content else {}
        return {**self.source_hashes, **{f"{name} after its protocols": value for name, value in changed.items()}}

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one image in a batch."""
        return self.image_shape or self.images.shape[1:]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network: (height, width, channels) or (dim,)."""
        size = self.stored.size
        return (size, size, self.stored_shape[-1]) if size else self.stored_shape

    @property
    def dtype(self) -> np.dtype:
        """Type of stored values."""
        return np.dtype(np.uint8) if isinstance(self.images, Encoded) else self.images.dtype

    @property
    def labelled_train(self) -> np.ndarray:
        """Training rows [size] that have a label."""
        train = self.splits["train"]
        return train[self.labelled[train]]

    @property
    def labelled(self) -> np.ndarray:
        """Whether each row has a label, bool [rows]."""
        return self.labels >= 0


def resolve_view(dataset: Dataset, view: str, field: str = "config.data.view") -> str:
    """Returns the view that training uses.

    Args:
      dataset: Data set that has a default view and says whether its images may be flipped.
      view: config.data.view; '' for the default.
      field: Config field of the view, for the message.

    Raises:
      UserError: The view does not suit the data.
    """
    allowed = dataset.stored.views
    where = f"{field} '{view}'"
    parsed = view_names.check(view or allowed[0], dataset.stored_shape, dataset.dtype, where)
    mirrors = any(view_names.parse(name).flip for name in allowed)
    if view not in ("", *allowed) and parsed.flip and not mirrors:
        raise UserError(f"{where}: images of data set '{dataset.name}' must not be flipped; choose another view.")
    return view or allowed[0]


def check_rows(rows: Rows, where: str) -> Rows:
    """Returns what a source returned as NumPy arrays with int32 labels.

    Raises:
      UserError: A shape, type or value is wrong; the message says which.
    """
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
    if not isinstance(rows.test, numbers.Real) or not 0 <= rows.test < 1:
        raise UserError(f"{where}: the fraction 'test' must be in [0, 1), not {rows.test!r}.")
    if rows.class_names is not None and len(rows.class_names) != rows.num_classes:
        raise UserError(
            f"{where}: {len(rows.class_names)} class_names for {rows.num_classes} classes; name all classes or none."
        )
    return rows._replace(labels=rows.labels.astype(np.int32))


def count_classes(labels: np.ndarray, where: str) -> int:
    """Returns the number of classes of labels whose data set does not say it: the largest label + 1.

    Raises:
      UserError: The labels are numbers from elsewhere, or count from 1, so that classes would have no example.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or not labels.size:
        return 2  # check_rows says what is wrong with them
    there, largest = np.unique(labels), int(labels.max())
    present = len(there)
    if labels.min() > 0 or largest + 1 > max(FEW_CLASSES, 2 * present):
        raise UserError(
            f"{where}: the labels are {present} numbers from {labels.min()} to {largest}, so that most classes, or the "
            f"first one, would have no example; number the classes from 0, or set config.data.args.num_classes."
        )
    if labels.min() == 0 and present <= largest:
        line = (
            "%s: %d of the %d classes have no example, the first is class %d; config.data.args.num_classes=%d says so."
        )
        first = int(np.setdiff1d(np.arange(largest), there)[0])
        logging.warning(line, where, largest + 1 - present, largest + 1, first, largest + 1)
    return largest + 1


def check_stored(stored: Stored, shape: tuple[int, ...], where: str) -> Stored:
    """Returns `stored` with tuples of floats, which are hashable, for images of a shape.

    Raises:
      UserError: A value does not suit the images; the message says which.
    """
    scale, mean, std = (_numbers(stored, name, where) for name in ("scale", "mean", "std"))
    for name, values in (("scale", scale[:1]), ("mean", mean), ("std", std)):
        if len(values) not in (1, channels := shape[-1]):
            raise UserError(f"{where}: {name} must have 1 value or {channels}, one per channel, not {len(values)}.")
    if len(scale) != 1 or min(*std, *scale) <= 0:
        raise UserError(f"{where}: scale and std must be above 0, and scale one number, not {stored.scale} and {std}.")
    for view in stored.views:
        if len(shape) == 1 and view_names.parse(view) != view_names.View():
            raise UserError(f"{where} has vectors [rows, dim]; their only view is 'none', not '{view}'.")
    return stored._replace(scale=scale[0], mean=mean, std=std, views=tuple(stored.views))


def _numbers(stored: Stored, name: str, where: str) -> tuple[float, ...]:
    """Returns a field of `stored` as finite numbers."""
    given = getattr(stored, name)
    try:
        values = tuple(float(value) for value in np.ravel(given))
    except (TypeError, ValueError):
        values = ()
    if not values or not np.isfinite(values).all():
        raise UserError(f"{where}: {name} must be a finite number, or one for each channel, not {given!r}.")
    return values


def _check_images(images: np.ndarray, where: str) -> None:
    if images.ndim not in (2, 4) or 0 in images.shape:
        shape, hint = list(images.shape), "; give images[..., None]" if images.ndim == 3 else ""
        wanted = "[rows, height, width, channels] or vectors [rows, dim]"
        raise UserError(f"{where}: images must be {wanted}, not {shape}{hint}.")
    if images.ndim == 4 and _channels_first(*images.shape[1:]):
        raise UserError(
            f"{where}: images {list(images.shape)} are in the order (channels, height, width); give "
            "images.transpose(0, 2, 3, 1)."
        )
    if images.dtype.newbyteorder("=") not in (np.uint8, np.float32, np.float64):
        scaled = "np.round(images / 257).astype(np.uint8)" if images.dtype == np.uint16 else "images.astype(np.uint8)"
        raise UserError(
            f"{where}: images must be uint8, float32 or float64, not {images.dtype}; give images.astype(np.float32), "
            f"or {scaled} if they have the levels 0 to {65535 if images.dtype == np.uint16 else 255}."
        )
    if images.dtype == np.uint8:
        return
    most = max(abs(float(images.min())), abs(float(images.max())))  # not finite if a value is not
    if not most <= float(np.finfo(np.float32).max):
        raise UserError(f"{where}: images contain values that are not finite in float32; remove or replace them.")


def _channels_first(first: int, second: int, third: int) -> bool:
    """Whether images have PyTorch's order: few channels come first, or another number than two equal sides."""
    return first <= 4 < min(second, third) or (first != second == third > 4)


def _check_labels(rows: Rows, where: str) -> None:
    labels = rows.labels
    if labels.shape != (len(rows.images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels must be integers [{len(rows.images)}], one per image, "
            f"not {labels.dtype} {list(labels.shape)}{_how_to_make_integers(labels)}."
        )
    if not isinstance(rows.num_classes, numbers.Integral):
        raise UserError(f"{where}: num_classes must be an integer, not {rows.num_classes!r}.")
    if rows.num_classes < 2:
        raise UserError(f"{where}: there must be at least 2 classes, not {rows.num_classes}.")
    if rows.num_classes > MOST_CLASSES:
        raise UserError(f"{where}: there can be at most {MOST_CLASSES:,} classes, not {rows.num_classes:,}.")
    if labels.min() < 0 or labels.max() >= rows.num_classes:
        raise UserError(
            f"{where}: labels must be in [0, {rows.num_classes - 1}], but range from {labels.min()} to {labels.max()}; "
            "number the classes from 0, or give the right num_classes."
        )


def _how_to_make_integers(labels: np.ndarray) -> str:
    """Returns the expression that makes integers [rows] of labels in another form, '' if there is none."""
    if labels.ndim == 2:
        return "; give labels[:, 0]" if labels.shape[1] == 1 else "; give labels.argmax(axis=1) if they are one-hot"
    if labels.dtype.kind in "US":
        return "; give np.unique(labels, return_inverse=True)[1], which numbers the classes by name"
    whole = labels.dtype.kind in "fb" and np.array_equal(labels, np.round(labels))
    return "; give labels.astype(int)" if whole else ""


def _check_soft(rows: Rows, where: str) -> None:
    soft, shape = rows.soft, (len(rows.images), rows.num_classes)
    if soft.shape != shape or soft.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise UserError(f"{where}: soft must be float32 or float64 {list(shape)}, not {soft.dtype} {list(soft.shape)}.")
    if not (soft >= 0).all() or not np.allclose(soft.sum(axis=1), 1, atol=1e-3):
        raise UserError(f"{where}: every row of soft must be a distribution: no negative values, sum 1.")
