"""Image classification sets that tensorflow-datasets prepared, read without TensorFlow."""

import pathlib
from typing import Any

import numpy as np

from kdjax.data.dataset import Rows
from kdjax.errors import UserError


def is_there(data_dir: str, name: str) -> bool:
    """Returns whether `data_dir` has a folder of the set, without importing tensorflow-datasets."""
    return pathlib.Path(data_dir, _base(name)).is_dir()


def how_to_prepare(name: str, data_dir: str) -> str:
    """Returns what to run once, where there is a network, to have the set in `data_dir`."""
    code = f"import tensorflow_datasets as tfds; tfds.data_source({name!r}, data_dir={str(data_dir)!r})"
    return f'prepare it once with: python -c "{code}"  # most sets want `pip install tensorflow-cpu` for this'


def load_tfds(data_dir: str, *, name: str, test: float = 0.2) -> Rows:
    """Reads a prepared set that has an image and a label.

    Args:
      data_dir: of tensorflow-datasets.
      name: as tensorflow-datasets names it, with config and version if wanted: 'mnist', 'eurosat/rgb:2.0.0'.
      test: fraction drawn to be the test split where the set has neither 'test' nor 'validation'.

    Returns:
      rows of 'train' and then of 'test', or of 'validation' where there is no 'test'; by their 'id' where they have
      one, which is the order of the original CIFAR files.

    Raises:
      UserError: not prepared, and how to; no image and label; images of different sizes.
    """
    if not is_there(data_dir, name):
        raise UserError(f"data set 'tfds:{name}' is not in {data_dir}; {how_to_prepare(name, data_dir)}")
    info, sources = _open(data_dir, name)
    held_out = next((split for split in ("test", "validation") if split in sources), None)
    where = f"data set 'tfds:{name}'"
    parts = [_read(sources[split], where) for split in ("train", held_out) if split]
    for images, _ in parts:
        _check_size(images, parts[0][0], where)
    images, labels = (np.concatenate(group) for group in zip(*parts, strict=True))
    feature = info.features["label"]
    num_train = len(parts[0][1]) if held_out else None
    return Rows(images, labels, None, feature.num_classes, num_train, test, tuple(feature.names))


def _base(name: str) -> str:
    return name.partition("/")[0].partition(":")[0]


def _open(data_dir: str, name: str) -> tuple[Any, dict[str, Any]]:
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    try:
        builder = builder_from_files(name, data_dir=data_dir)  # whatever version lies there; it cannot download
        info, sources = builder.info, builder.as_data_source()
    except Exception as error:  # unknown names, other file formats, half-prepared folders: each raises its own kind
        line = (str(error).splitlines() or [""])[0].partition(" Possible root causes")[0]
        where = f"data set 'tfds:{name}' in {data_dir}"
        raise UserError(f"{where} cannot be read ({line}); {how_to_prepare(name, data_dir)}") from error
    if "train" not in sources:
        raise UserError(f"data set 'tfds:{name}' in {data_dir} has no split 'train'; {how_to_prepare(name, data_dir)}")
    features = info.features
    if not {"image", "label"} <= set(features) or not getattr(features["label"], "num_classes", None):
        have = ", ".join(features)
        raise UserError(f"data set 'tfds:{name}' must have an image and a label of known classes; it has {have}.")
    return info, sources


def _read(source: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels, ids = None, np.empty(len(source), np.int32), []
    for i, example in enumerate(source):
        image = example["image"]
        if images is None:
            images = np.empty((len(source), *image.shape), image.dtype)
        _check_size(image[None], images, where)
        images[i], labels[i] = image, example["label"]
        ids.append(example.get("id", b""))
    if images is None:
        raise UserError(f"{where} is empty.")
    order = np.argsort(np.array(ids), kind="stable")
    return images[order], labels[order]


def _check_size(images: np.ndarray, others: np.ndarray, where: str) -> None:
    a, b = (list(group.shape[1:]) for group in (images, others))
    if a != b:
        raise UserError(f"{where} has images of different sizes, {a} and {b}; resize them and use 'arrays'.")
