"""Reads image classification sets that tensorflow-datasets prepared, without TensorFlow."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.content import files_hash
from kdjax.data.dataset import Rows
from kdjax.data.encoded import Encoded, size_of
from kdjax.errors import UserError

SMALL = 64  # largest side in pixels at which images of one size are decoded at once into an array
BATCH = 256  # records in one read
# Well-known sets, by their names in tensorflow-datasets, whose training and test sets are their publishers'.
OFFICIAL = (
    *("mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100"),
    *("svhn_cropped", "stl10", "imagenet2012"),
)


def is_official(name: str) -> bool:
    """Returns whether a name, perhaps with config and version, is that of a well-known set."""
    return _base(name) in OFFICIAL


def is_there(data_dir: str, name: str) -> bool:
    """Returns whether `data_dir` has a folder of the set, without importing tensorflow-datasets."""
    return pathlib.Path(data_dir, _base(name)).is_dir()


def how_to_prepare(name: str, data_dir: str) -> str:
    """Returns the command that downloads kdjax's data set `name` into `data_dir`, for messages."""
    return f"prepare it once with: python -m kdjax.prepare_data {name} --data_dir={shlex.quote(str(data_dir))}"


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsImages(Encoded):
    """Encoded images in the records of a prepared set. Each process opens the set by itself at its first read.

    Attributes:
      data_dir: Directory of tensorflow-datasets.
      set_name: Name of the set in tensorflow-datasets.
      splits: Names of the splits.
      split: Index into `splits` for each row, [rows].
      position: Position of each row's record in its split, [rows].
      digests: Hash of each encoded image, [rows] of 16 bytes.
      channels: Number of channels of a decoded image, 1 or 3.
      folder: Folder of the records.
    """

    data_dir: str
    set_name: str
    splits: tuple[str, ...]
    split: np.ndarray
    position: np.ndarray
    digests: np.ndarray
    channels: int = 3
    folder: str = ""

    def __len__(self) -> int:
        return len(self.position)

    def encoded(self, row: int) -> bytes:
        sources = _undecoded(self.data_dir, self.set_name, os.getpid())
        return _record(sources[self.splits[self.split[row]]], int(self.position[row]), self.name(row))["image"]

    def content_hash(self) -> str:
        """Returns a hash of the encoded images in their order, and of the ends of the files that have them."""
        folder = pathlib.Path(self.folder)
        files = files_hash([str(path) for path in sorted(folder.glob("*.array_record*"))], self.folder)
        return hashlib.sha256(self.digests.tobytes() + files.encode()).hexdigest()

    def name(self, row: int) -> str:
        return f"tfds:{self.set_name}, split '{self.splits[self.split[row]]}', record {self.position[row]}"


def load_tfds(data_dir: str, *, name: str, test: float = 0.2) -> Rows:
    """Reads a prepared set whose examples have an image and a label.

    Args:
      data_dir: Directory of tensorflow-datasets.
      name: Name of the set in tensorflow-datasets, optionally with config and version: 'mnist', 'eurosat/rgb:2.0.0'.
      test: Fraction of the rows that is drawn as the test split, if the set has neither 'test' nor 'validation'.

    Returns:
      Rows of 'train', then of 'test', or of 'validation' if there is no labelled 'test'. The rows of a split are in the
      order of their 'id' if they have one, which is the order of the original CIFAR files. Images of one size, at most
      64 pixels, come as an array, all others as `TfdsImages`.

    Raises:
      UserError: The set is not prepared, or its examples have no image and label.
    """
    if not is_there(data_dir, name):
        raise UserError(f"data set 'tfds:{name}' is not in {data_dir}; {how_to_prepare(f'tfds:{name}', data_dir)}")
    info, sources = _open(data_dir, name)
    held_out = next((split for split in ("test", "validation") if _has_labels(sources, split)), None)
    splits = ("train", held_out) if held_out else ("train",)
    where = f"data set 'tfds:{name}'"
    images, labels, num_train = _arrays(sources, splits, where) if _may_be_small(info, data_dir, name) else NOT_ALIKE
    if images is None:
        images, labels, num_train = _encoded(info, data_dir, name, splits, where)
    feature = info.features["label"]
    return Rows(images, labels, None, feature.num_classes, num_train if held_out else None, test, tuple(feature.names))


def load_svhn(data_dir: str) -> Rows:
    """Reads SVHN's cropped digits (73,257 for training, 26,032 for testing), prepared by tensorflow-datasets."""
    return load_tfds(data_dir, name="svhn_cropped")


def load_stl10(data_dir: str) -> Rows:
    """Reads STL-10's labelled images (5,000 for training, 8,000 for testing), prepared by tensorflow-datasets."""
    return load_tfds(data_dir, name="stl10")


def load_fashion_mnist(data_dir: str) -> Rows:
    """Reads Fashion-MNIST (60,000 images for training, 10,000 for testing), prepared by tensorflow-datasets."""
    return load_tfds(data_dir, name="fashion_mnist")


def _base(name: str) -> str:
    return name.partition("/")[0].partition(":")[0]


def _open(data_dir: str, name: str, decoders: Mapping | None = None) -> tuple[Any, dict[str, Any]]:
    from tensorflow_datasets.core import read_only_builder

    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)  # never downloads
        info = builder.info
        sources = {split: builder.as_data_source(split=split, decoders=decoders) for split in info.splits}
    except Exception as error:  # unknown names, other file formats and half-prepared folders raise different types
        line = (str(error).splitlines() or [""])[0].partition(" Possible root causes")[0]
        where = f"data set 'tfds:{name}' in {data_dir}"
        raise UserError(f"{where} cannot be read ({line}); {how_to_prepare(f'tfds:{name}', data_dir)}") from error
    if "train" not in sources:
        how = how_to_prepare(f"tfds:{name}", data_dir)
        raise UserError(f"data set 'tfds:{name}' in {data_dir} has no split 'train'; {how}")
    features = info.features
    if not {"image", "label"} <= set(features) or not getattr(features["label"], "num_classes", None):
        have = ", ".join(features)
        raise UserError(
            f"data set 'tfds:{name}' must have an 'image' and a 'label' with a number of classes; it has {have}."
        )
    return info, sources


@functools.lru_cache(maxsize=4)
def _undecoded(data_dir: str, name: str, process: int) -> dict[str, Any]:
    """Opens the splits of a set without decoding images.

    `process` is a part of the cache's key, since open files cannot be used after a fork.
    """
    del process
    import tensorflow_datasets as tfds

    return _open(data_dir, name, {"image": tfds.decode.SkipDecoding()})[1]


def _record(source: Any, position: int, where: str) -> dict:
    try:
        return source[position]
    except Exception as error:  # array_record and protobuf raise types of their own
        raise UserError(f"{where} cannot be read ({' '.join(str(error).split())}); prepare the set again.") from error


def _has_labels(sources: Mapping, split: str) -> bool:
    """Returns whether a split has labels; ImageNet's test images, for example, are all labelled -1."""
    return split in sources and len(sources[split]) > 0 and int(sources[split][0]["label"]) >= 0


def _may_be_small(info: Any, data_dir: str, name: str) -> bool:
    """Returns whether all images may have one small size, as the set declares it, or else as the first image has it."""
    shape = info.features["image"].shape
    if None not in shape:
        return max(shape[:2]) <= SMALL
    images = TfdsImages(str(data_dir), name, ("train",), np.zeros(1, int), np.zeros(1, int), np.zeros(1))
    return max(size_of(images, 0)) <= SMALL


NOT_ALIKE = (None, None, None)


def _arrays(sources: Mapping, splits: Sequence[str], where: str) -> tuple:
    """Returns images, labels and the number of training rows, or NOT_ALIKE if two images differ in size."""
    parts = [_read(sources[split], where) for split in splits]
    if any(images is None or images.shape[1:] != parts[0][0].shape[1:] for images, _ in parts):
        return NOT_ALIKE
    images, labels = (np.concatenate(group) for group in zip(*parts, strict=True))
    return images, labels, len(parts[0][1])


def _read(source: Any, where: str) -> tuple[np.ndarray | None, np.ndarray]:
    images, labels, ids = None, np.empty(len(source), np.int32), []
    for i, example in enumerate(source):
        image = example["image"]
        if images is None:
            images = np.empty((len(source), *image.shape), image.dtype)
        if image.shape != images.shape[1:]:
            return None, labels
        images[i], labels[i] = image, example["label"]
        ids.append(example.get("id", b""))
    if images is None:
        raise UserError(f"{where} is empty.")
    order = np.argsort(np.array(ids), kind="stable")
    return images[order], labels[order]


def _encoded(info: Any, data_dir: str, name: str, splits: Sequence[str], where: str) -> tuple:
    """Returns encoded images, labels and the number of training rows."""
    parts = [_scan(info, str(data_dir), name, split, where) for split in splits]
    labels, digests, position = (np.concatenate(group) for group in zip(*parts, strict=True))
    counts = [len(part[0]) for part in parts]
    channels = 1 if info.features["image"].shape[-1] == 1 else 3
    split = np.repeat(np.arange(len(splits), dtype=np.uint8), counts)
    folder = str(info.data_dir)
    images = TfdsImages(str(data_dir), name, tuple(splits), split, position, digests, channels, folder)
    return images, labels, counts[0]


def _scan(info: Any, data_dir: str, name: str, split: str, where: str) -> tuple:
    """Returns labels, digests and order of a split's records; saves them beside the records for the next time."""
    source = _undecoded(data_dir, name, os.getpid())[split]
    kept = pathlib.Path(info.data_dir, f"kdjax_rows_{split}.npz")
    found = _kept(kept, len(source), pathlib.Path(info.data_dir, "dataset_info.json"))
    if found is None:
        found = _scan_records(source, where)
        _keep(kept, found)
    return found


def _scan_records(source: Any, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from tqdm import tqdm

    labels, digests, ids = np.empty(len(source), np.int32), np.empty(len(source), "V16"), []
    for start in tqdm(range(0, len(source), BATCH), desc=f"{where}: labels", disable=None, leave=False):
        positions = list(range(start, min(start + BATCH, len(source))))
        try:
            records = source.__getitems__(positions)
        except Exception as error:
            raise UserError(f"{where} is damaged ({' '.join(str(error).split())}); prepare it again.") from error
        for i, record in zip(positions, records, strict=True):
            labels[i] = record["label"]
            digests[i] = hashlib.blake2b(record["image"], digest_size=16).digest()
            ids.append(record.get("id", b""))
    order = np.argsort(np.array(ids), kind="stable")
    return labels[order], digests[order], order


def _kept(file: pathlib.Path, rows: int, info: pathlib.Path) -> tuple | None:
    """Returns what `_keep` saved, or None if there is nothing, or the set was prepared again since."""
    try:
        if file.stat().st_mtime_ns < info.stat().st_mtime_ns:
            return None
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            found = tuple(arrays[name] for name in ("labels", "digests", "order"))
    except Exception:  # the file is absent or damaged: the records are read again
        return None
    return found if all(array.shape == (rows,) for array in found) else None


def _keep(file: pathlib.Path, arrays: tuple) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(part, "wb") as out:
            np.savez(out, **dict(zip(("labels", "digests", "order"), arrays, strict=True)))
        part.replace(file)
    except OSError:  # the folder is read-only: the records are read again next time
        part.unlink(missing_ok=True)
