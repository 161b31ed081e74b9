"""The DATASETS table, the sources that need no files of others, and how a config becomes a Dataset."""

import dataclasses
import functools
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.arguments import check_arguments, signature_of
from kdjax.data.cifar import load_cifar10, load_cifar100
from kdjax.data.cifar10h import load_cifar10h
from kdjax.data.dataset import Dataset, Rows, Source, Stored, check_rows, check_stored
from kdjax.data.encoded import Encoded
from kdjax.data.folders import load_folder, load_imagenet, load_list, load_tiny_imagenet
from kdjax.data.keeping import keep
from kdjax.data.letters import load_letters
from kdjax.data.protocols import apply_protocols
from kdjax.data.splits import make_splits
from kdjax.data.tfds_source import load_fashion_mnist, load_stl10, load_svhn, load_tfds
from kdjax.errors import UserError, lookup, nearest
from kdjax.randomness import philox

CROP_FLIP = ("crop_flip", "crop", "none")
CIFAR10_UNITS = (1 / 255, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_UNITS = (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNITS = ("scale", "mean", "std")  # arguments of every source that override its row in the table


def load_digits(data_dir: str, *, test: float = 0.2) -> Rows:
    """Reads scikit-learn's 1,797 real 8x8 images of digits; a fraction `test` of them is drawn to be the test split."""
    del data_dir  # they come with scikit-learn
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
    """Draws the mixture of Gaussians of the MSE-teacher paper, whose posterior p* is known and comes as `soft`.

    The defaults with config.data.validation = 0.5 are its 5 % / 5 % / 90 %.

    Args:
      data_dir: not used.
      classes: equally likely, each around a centre drawn uniformly from {-delta, 0, delta}^dim.
      dim: of the vectors.
      n_train: rows for training and validation.
      n_test: rows of the test split.
      variance: of the noise, the same in every direction.
      delta: distance of the grid that the centres lie on.
      seed: of this data alone, so that config.seed does not move it.

    Returns:
      float32 vectors, and float64 p* = softmax_k(-|x - centre_k|^2 / (2 variance)) of the vectors as they are stored.
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
      classes, dim, variance, delta, seed: as `load_gaussian` takes them; its other arguments change nothing.
    """
    draw = np.random.Generator(philox(seed, "gaussian"))
    centres = _centres(draw, classes, dim, delta)
    return centres / variance, -(centres**2).sum(axis=1) / (2 * variance)


def _posterior(x: np.ndarray, centres: np.ndarray, variance: float) -> np.ndarray:
    scores = (x.astype(np.float64) @ centres.T - (centres**2).sum(axis=1) / 2) / variance  # |x|^2 cancels
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def load_arrays(data_dir: str, *, path: str, num_classes: int | None = None, test: float = 0.2) -> Rows:
    """Reads an `.npz` with images, labels, perhaps soft, and perhaps test_images, test_labels, test_soft.

    Args:
      data_dir: where a relative path is looked for, after the current folder.
      path: of the file.
      num_classes: by default what soft has, else the largest label + 1.
      test: fraction drawn to be the test split where the file has no test_images.
    """
    where = f"data set 'arrays' ({path})"
    arrays = _read_npz(path, data_dir, where)
    parts = [_part(arrays, "", where)]
    if "test_images" in arrays:
        parts.append(_part(arrays, "test_", where))
        _check_alike(*parts, where)
    images, labels, soft = (None if group[0] is None else np.concatenate(group) for group in zip(*parts, strict=True))
    if num_classes is None:
        num_classes = soft.shape[-1] if soft is not None else int(labels.max(initial=0)) + 1
    return Rows(images, labels, soft, num_classes, len(parts[0][0]) if len(parts) == 2 else None, test)


def _read_npz(path: str, data_dir: str, where: str) -> dict[str, np.ndarray]:
    file = next((p for p in (pathlib.Path(path), pathlib.Path(data_dir, path)) if p.is_file()), None)
    if file is None:
        raise UserError(f"{where}: no such file, neither here nor in {data_dir}.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{where} is not an .npz of plain arrays: {_first_line(error)}") from error


def _part(arrays: Mapping[str, np.ndarray], prefix: str, where: str) -> tuple:
    """Returns images, labels, and soft or None."""
    for name in ("images", "labels"):
        if prefix + name not in arrays:
            raise UserError(f"{where} has no array '{prefix}{name}'.{nearest(prefix + name, arrays)}")
    images, labels, soft = (arrays.get(prefix + name) for name in ("images", "labels", "soft"))
    if len(np.atleast_1d(images)) != len(np.atleast_1d(labels)):
        shapes = f"{prefix}images {list(images.shape)} and {prefix}labels {list(labels.shape)}"
        raise UserError(f"{where}: {shapes} differ in length.")
    return images, labels, soft


def _check_alike(train: tuple, test: tuple, where: str) -> None:
    for name, a, b in zip(("images", "labels", "soft"), train, test, strict=True):
        if (a is None) != (b is None):
            raise UserError(f"{where} has {name} for one of training and test only; give both or none.")
        if a is not None and (a.shape[1:] != b.shape[1:] or a.dtype != b.dtype):
            kinds = f"{name} {a.dtype} {list(a.shape)} and test_{name} {b.dtype} {list(b.shape)}"
            raise UserError(f"{where}: {kinds} differ.")


# name -> loader, scale, mean, std, views (the first is the default). None: bytes are scaled to [-1, 1], floats are left
# as they are; vectors have the view 'none', images also 'crop' and 'crop_flip' when asked for.
DATASETS: dict[str, Source] = {
    "digits": Source(load_digits, 1 / 16, (0.305,), (0.376,), ("none", "crop")),  # measured over all images
    "letters": Source(load_letters, 1 / 16, (0.250,), (0.326,), ("none", "crop")),  # of the capitals
    "gaussian": Source(load_gaussian, 1.0, (0.0,), (1.0,), ("none",)),
    "arrays": Source(load_arrays),
    "cifar10": Source(load_cifar10, *CIFAR10_UNITS, CROP_FLIP, (32, 32, 3), 10),
    "cifar10h": Source(load_cifar10h, *CIFAR10_UNITS, CROP_FLIP, (32, 32, 3), 10),
    "cifar100": Source(
        load_cifar100, 1 / 255, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CROP_FLIP, (32, 32, 3), 100
    ),
    "svhn": Source(
        load_svhn, 1 / 255, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), ("crop", "none"), (32, 32, 3), 10
    ),
    "stl10": Source(
        load_stl10, 1 / 255, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), CROP_FLIP, (96, 96, 3), 10
    ),
    "fashion_mnist": Source(load_fashion_mnist, 1 / 255, (0.2860,), (0.3530,), CROP_FLIP, (28, 28, 1), 10),
    "tiny_imagenet": Source(
        load_tiny_imagenet, 1 / 255, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), CROP_FLIP, (64, 64, 3), 200
    ),
    "imagenet": Source(load_imagenet, *IMAGENET_UNITS, CROP_FLIP, (224, 224, 3), 1000),
    "folder": Source(load_folder),  # see SHORT
    "list": Source(load_list),
    "tfds": Source(load_tfds),
}
SHORT = {"folder": "path", "list": "path", "tfds": "name"}  # 'folder:PATH' is short for folder's args = {'path': PATH}


def shape_and_classes(data_config: Any, data_dir: str) -> tuple[tuple[int, ...], int]:
    """Returns the shape of one image as a network sees it, and the number of classes; reads the files only if it must.

    Args:
      data_config: config.data, a ConfigDict.
      data_dir: folder of the files that sources read.

    Raises:
      UserError: as `load_dataset`, where the table does not know.
    """
    source = DATASETS.get(data_config.name)
    if source is None or source.shape is None or data_config.protocols:
        dataset = load_dataset(data_config, data_dir)
        return dataset.input_shape, dataset.num_classes
    size = data_config.size
    return (size, size, source.shape[-1]) if size else source.shape, source.num_classes


def load_dataset(data_config: Any, data_dir: str) -> Dataset:
    """Loads the data that a config names and splits it; the arrays are shared by all data sets of the same source.

    Args:
      data_config: config.data, a ConfigDict.
      data_dir: folder of the files that sources read.

    Raises:
      UserError: an unknown name or argument, missing or corrupt files, targets that the data lacks.
    """
    name = data_config.name
    try:
        args = json.dumps(data_config.args.to_dict(), sort_keys=True)
    except TypeError as error:
        raise UserError(f"config.data.args must hold numbers, strings, lists and mappings only: {error}.") from error
    rows, stored = _read(name, args, str(data_dir))
    kept = keep(rows.images, data_config.size, data_config.stream, data_config.skip_bad)
    if data_config.size and len(kept.shape) == 1:
        raise UserError(
            f"config.data.size: data set '{name}' has vectors [rows, dim], which have no size; leave it at 0."
        )
    stored = check_stored(
        stored._replace(size=data_config.size, kernel=data_config.interpolation, cropped=kept.cropped),
        kept.shape,
        f"data set '{name}'",
    )
    splits = make_splits(rows, data_config.validation, data_config.split_seed)
    dataset = Dataset(
        name, kept.images, rows.labels, rows.soft, rows.num_classes, splits, stored, rows.class_names, kept.shape
    )
    streamed = data_config.stream == "always" or isinstance(kept.images, Encoded)
    dataset = dataclasses.replace(dataset, streamed=streamed, skip_bad=data_config.skip_bad)
    dataset = apply_protocols(dataset, data_config.protocols.to_dict(), data_config.split_seed)
    if data_config.targets == "soft" and dataset.soft is None:
        raise UserError(f"config.data.targets = 'soft', but data set '{name}' has no soft labels; take 'labels'.")
    return dataset


@functools.lru_cache(maxsize=4)
def _read(name: str, json_args: str, data_dir: str) -> tuple[Rows, Stored]:
    """Reads a source once a process; arguments are text: hashable, and the same from a config and a manifest."""
    where, args = f"data set '{name}'", json.loads(json_args)
    kind, colon, rest = name.partition(":")
    if colon and kind in SHORT:
        source, args = DATASETS[kind], {**args, SHORT[kind]: rest}
    else:
        source = lookup(DATASETS, name, "data set")
    source = source if isinstance(source, Source) else Source(source)
    units = {unit: args.pop(unit) for unit in UNITS if unit in args}
    takes = signature_of(source.load, leading=1)
    check_arguments(takes, args, field="config.data.args", owner=where, also=UNITS)
    rows = check_rows(_load(source, args, data_dir, where), where)
    return rows, _stored(source, units, rows.images)


def _load(source: Source, args: Mapping, data_dir: str, where: str) -> Rows:
    try:
        return source.load(data_dir, **args)
    except UserError:
        raise
    except Exception as error:  # the loader may be the user's own
        line = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{where} could not be loaded with {args}: {line}") from error


def _stored(source: Source, units: Mapping, images: np.ndarray) -> Stored:
    """Fills what the table leaves open, and puts the config's own units over it."""
    encoded = isinstance(images, Encoded)
    guess = (1 / 255, (0.5,), (0.5,)) if encoded or images.dtype == np.uint8 else (1.0, (0.0,), (1.0,))
    table = [own if own is not None else default for own, default in zip(source[1:4], guess, strict=True)]
    views = source.views or (("none",) if not encoded and images.ndim == 2 else ("none", "crop", "crop_flip"))
    return Stored(*(units.get(unit, value) for unit, value in zip(UNITS, table, strict=True)), views)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
