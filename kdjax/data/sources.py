"""The table of data sets (DATASETS), the sources digits and gaussian, and loading what a config names."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from kdjax.arguments import check_arguments, signature_of
from kdjax.data.arrays import load_arrays
from kdjax.data.cifar import load_cifar10, load_cifar100
from kdjax.data.cifar10h import load_cifar10h
from kdjax.data.content import Content
from kdjax.data.dataset import Dataset, Rows, Source, Stored, check_rows, check_stored
from kdjax.data.encoded import Encoded
from kdjax.data.folders import load_folder, load_imagenet, load_list, load_tiny_imagenet
from kdjax.data.keeping import keep, oriented
from kdjax.data.letters import load_letters
from kdjax.data.overlap import shared_rows
from kdjax.data.protocols import apply_protocols
from kdjax.data.splits import make_splits
from kdjax.data.tfds_source import is_official, load_fashion_mnist, load_stl10, load_svhn, load_tfds
from kdjax.errors import UserError, lookup
from kdjax.own_code import SHORT, is_short, place_of
from kdjax.randomness import philox

UNITS = ("scale", "mean", "std")  # in this order below; config.data.args may replace each of them
LIKE_BYTES = 16  # floats of images that were scaled or standardized are smaller
CROP_FLIP = ("crop_flip", "crop", "none")
DIGITS_UNITS = (1 / 16, (0.305,), (0.376,))  # measured over all images
LETTERS_UNITS = (1 / 16, (0.250,), (0.326,))  # measured over the capitals
CIFAR10_UNITS = (1 / 255, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_UNITS = (1 / 255, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
SVHN_UNITS = (1 / 255, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
STL10_UNITS = (1 / 255, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))
FASHION_MNIST_UNITS = (1 / 255, (0.2860,), (0.3530,))
TINY_IMAGENET_UNITS = (1 / 255, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
IMAGENET_UNITS = (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_digits(data_dir: str, *, test: float = 0.2) -> Rows:
    """Reads scikit-learn's 1,797 images of handwritten digits, 8x8 pixels.

    Args:
      data_dir: Not used, since the images come with scikit-learn.
      test: Fraction of the images that is drawn as the test split.
    """
    del data_dir
    from sklearn.datasets import load_digits as read

    digits = read()
    images = digits.images.astype(np.uint8)[..., None]
    return Rows(images, digits.target, None, 10, test=test, class_names=tuple(str(digit) for digit in range(10)))


def load_gaussian(
    data_dir: str,
    *,
    classes: int = 10,
    dim: int = 30,
    n_train: int = 10_000,
    n_test: int = 90_000,
    variance: float = 6.0,
    delta: float = 1.0,
    seed: int = 0,
) -> Rows:
    """Draws a mixture of Gaussians, whose Bayes posterior p* is known and returned as `soft`.

    This is the synthetic data of Hamidi et al. (2024), "How to Train the Teacher Model for Effective Knowledge
    Distillation". With config.data.validation = 0.5 the defaults give the paper's splits of 5 %, 5 % and 90 %.

    Args:
      data_dir: Not used.
      classes: Number of classes, which are equally likely. The centre of each is drawn uniformly from
        {-delta, 0, delta}^dim.
      dim: Dimension of the vectors.
      n_train: Number of rows for training and validation.
      n_test: Number of rows of the test split.
      variance: Variance of the noise, the same in every direction.
      delta: Distance between neighbouring points of the grid on which the centres lie.
      seed: Seed of this data; config.seed does not change it.

    Returns:
      float32 vectors, and float64 p* = softmax_k(-|x - centre_k|^2 / (2 variance)) of the stored vectors.
    """
    del data_dir
    if classes < 2 or dim < 1 or n_train < 1 or n_test < 0 or variance <= 0:
        raise UserError("data set 'gaussian' needs classes >= 2, dim >= 1, n_train >= 1, n_test >= 0 and variance > 0.")
    draw = np.random.Generator(philox(seed, "gaussian"))
    centres = _centres(draw, classes, dim, delta)
    labels = draw.integers(0, classes, n_train + n_test)
    noise = np.sqrt(variance) * draw.standard_normal((n_train + n_test, dim))
    x = (centres[labels] + noise).astype(np.float32)
    return Rows(x, labels, _posterior(x, centres, variance), classes, num_train=n_train)


def _centres(draw: np.random.Generator, classes: int, dim: int, delta: float) -> np.ndarray:
    return delta * draw.integers(-1, 2, (classes, dim))


def gaussian_oracle(
    *, classes: int = 10, dim: int = 30, variance: float = 6.0, delta: float = 1.0, seed: int = 0, **_: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight [classes, dim] and bias [classes] of the linear classifier whose softmax is p* of `gaussian`.

    Args:
      classes, dim, variance, delta, seed: Same as for `load_gaussian`, whose other arguments do not change p*.
    """
    draw = np.random.Generator(philox(seed, "gaussian"))
    centres = _centres(draw, classes, dim, delta)
    return centres / variance, -(centres**2).sum(axis=1) / (2 * variance)


def _posterior(x: np.ndarray, centres: np.ndarray, variance: float) -> np.ndarray:
    # -|x - centre|^2 / (2 variance) without |x|^2, which is the same for all classes.
    scores = (x.astype(np.float64) @ centres.T - (centres**2).sum(axis=1) / 2) / variance
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


# Name -> loader, scale, mean, std, views (the first is the default), shape of an image, number of classes, and whether
# the training and the test set are the publisher's. Defaults: bytes are scaled to [-1, 1] and floats are left as they
# are; the views of images are 'none', 'crop' and 'crop_flip', and vectors have only 'none'.
DATASETS: dict[str, Source] = {
    "digits": Source(load_digits, *DIGITS_UNITS, ("none", "crop")),
    "letters": Source(load_letters, *LETTERS_UNITS, ("none", "crop")),
    "gaussian": Source(load_gaussian, 1.0, (0.0,), (1.0,), ("none",)),
    "arrays": Source(load_arrays),
    "cifar10": Source(load_cifar10, *CIFAR10_UNITS, CROP_FLIP, (32, 32, 3), 10, official=True),
    "cifar10h": Source(load_cifar10h, *CIFAR10_UNITS, CROP_FLIP, (32, 32, 3), 10, official=True),
    "cifar100": Source(load_cifar100, *CIFAR100_UNITS, CROP_FLIP, (32, 32, 3), 100, official=True),
    "svhn": Source(load_svhn, *SVHN_UNITS, ("crop", "none"), (32, 32, 3), 10, official=True),
    "stl10": Source(load_stl10, *STL10_UNITS, CROP_FLIP, (96, 96, 3), 10, official=True),
    "fashion_mnist": Source(load_fashion_mnist, *FASHION_MNIST_UNITS, CROP_FLIP, (28, 28, 1), 10, official=True),
    "tiny_imagenet": Source(load_tiny_imagenet, *TINY_IMAGENET_UNITS, CROP_FLIP, (64, 64, 3), 200, official=True),
    "imagenet": Source(load_imagenet, *IMAGENET_UNITS, CROP_FLIP, (224, 224, 3), 1000, official=True),
    "folder": Source(load_folder),
    "list": Source(load_list),
    "tfds": Source(load_tfds),
}


def shape_and_classes(data_config: Any, data_dir: str) -> tuple[tuple[int, ...], int]:
    """Returns the shape of one input of a network and the number of classes.

    Reads the files of the data set only if its row in DATASETS does not say both.

    Args:
      data_config: config.data, a ConfigDict.
      data_dir: Directory of the files of data sets.

    Raises:
      UserError: The files have to be read and `load_dataset` refuses them.
    """
    source = DATASETS.get(data_config.name)
    if source is None or source.shape is None or data_config.protocols:
        dataset = load_dataset(data_config, data_dir)
        return dataset.input_shape, dataset.num_classes
    size = data_config.size
    return (size, size, source.shape[-1]) if size else source.shape, source.num_classes


def load_dataset(data_config: Any, data_dir: str) -> Dataset:
    """Loads the data set that a config names, splits it and applies its protocols.

    Data sets of the same source share the arrays of their images.

    Args:
      data_config: config.data, a ConfigDict.
      data_dir: Directory of the files of data sets.

    Raises:
      UserError: The name or an argument is unknown, files are missing or damaged, or the data has no soft labels and
        config.data.targets asks for them.
    """
    name = data_config.name
    try:
        args = json.dumps(data_config.args.to_dict(), sort_keys=True)
    except TypeError as error:
        raise UserError(f"config.data.args must hold numbers, strings, lists and mappings only: {error}.") from error
    dataset = _split(_read(name, args, str(data_dir)), data_config)
    if data_config.report_unshared:
        dataset = dataclasses.replace(dataset, shared_test=shared_rows(dataset.images, dataset.splits, "test"))
    dataset = apply_protocols(dataset, data_config.protocols.to_dict(), data_config.split_seed)
    if data_config.targets == "soft" and dataset.soft is None:
        raise UserError(f"config.data.targets = 'soft', but data set '{name}' has no soft labels; set it to 'labels'.")
    return dataset


def _split(found: "_Found", data_config: Any) -> Dataset:
    """Returns the splits of what was read, with images decoded or encoded as the config wants them."""
    name, rows = data_config.name, found.rows
    images = oriented(rows.images, data_config.exif, f"data set '{name}'")
    kept = keep(images, data_config.size, data_config.stream, data_config.skip_bad)
    if data_config.size and len(kept.shape) == 1:
        raise UserError(
            f"config.data.size: data set '{name}' has vectors [rows, dim], which have no size; leave it at 0."
        )
    stored = found.stored._replace(size=data_config.size, kernel=data_config.interpolation, cropped=kept.cropped)
    stored = check_stored(stored, kept.shape, f"data set '{name}'")
    return Dataset(
        name=name,
        images=kept.images,
        labels=rows.labels,
        soft=rows.soft,
        num_classes=rows.num_classes,
        splits=make_splits(rows, data_config.validation, data_config.split_seed),
        stored=stored,
        class_names=rows.class_names,
        image_shape=kept.shape,
        streamed=data_config.stream == "always" or isinstance(kept.images, Encoded),
        skip_bad=data_config.skip_bad,
        official=found.official,
        content=found.content,
    )


class _Found(NamedTuple):
    """What a source returned, and what DATASETS and config.data.args say about it."""

    rows: Rows
    stored: Stored
    official: bool
    content: Content


@functools.lru_cache(maxsize=4)
def _read(name: str, json_args: str, data_dir: str) -> _Found:
    """Reads a source once per process.

    The arguments come as JSON, which is hashable and the same text whether they are from a config or from a manifest.
    """
    where, args = f"data set '{name}'", json.loads(json_args)
    kind, _, rest = name.partition(":")
    if is_short(name):
        source, args = DATASETS[kind], {**args, SHORT[kind]: rest}
    else:
        source = lookup(DATASETS, name, "data set")
    source = source if isinstance(source, Source) else Source(source)
    units = {unit: args.pop(unit) for unit in UNITS if unit in args}
    takes = signature_of(source.load, leading=1)
    check_arguments(takes, args, field="config.data.args", owner=where, also=UNITS)
    rows = check_rows(_load(source, args, data_dir, where), where)
    official = source.official or (source.load is load_tfds and is_official(args["name"]))
    content = Content(rows.images, rows.labels, rows.soft)
    return _Found(rows, _stored(source, units, rows.images), official, content)


def _load(source: Source, args: Mapping, data_dir: str, where: str) -> Rows:
    try:
        return source.load(data_dir, **args)
    except UserError:
        raise
    except Exception as error:  # the loader may be the user's own and raise anything
        line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        place = f" ({found})" if (found := place_of(error)) else ""
        raise UserError(f"{where} could not be loaded with {args}: {line}{place}") from error


def _stored(source: Source, units: Mapping, images: np.ndarray | Encoded) -> Stored:
    """Returns the config's values where it has any, else those of the table, else defaults for the stored type."""
    encoded = isinstance(images, Encoded)
    guess = (1 / 255, (0.5,), (0.5,)) if encoded or images.dtype == np.uint8 else (1.0, (0.0,), (1.0,))
    table = [own if own is not None else default for own, default in zip(source[1:4], guess, strict=True)]
    if not encoded and source.scale is None and "scale" not in units:
        _warn_of_float_bytes(images)
    views = source.views or (("none",) if not encoded and images.ndim == 2 else ("none", "crop", "crop_flip"))
    return Stored(*(units.get(unit, value) for unit, value in zip(UNITS, table, strict=True)), views)


def _warn_of_float_bytes(images: np.ndarray) -> None:
    """Warns of images of floats that look like bytes, since floats are not scaled unless the config says so."""
    if images.ndim == 4 and images.dtype != np.uint8 and images.min() >= 0 and images.max() > LIKE_BYTES:
        line = "images are floats up to %g, which are not scaled: store them as uint8, or set config.data.args.scale=%g"
        logging.warning(line, images.max(), 1 / images.max())
