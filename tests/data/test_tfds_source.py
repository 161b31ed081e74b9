"""Sets of tensorflow-datasets, which the tests prepare themselves, without a network and without TensorFlow."""

import io
import os
import pickle
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import DATASETS, load_dataset, resolve_view, tfds_source
from kdjax.data.encoded import decode
from kdjax.data.overlap import overlaps
from kdjax.data.tfds_source import TfdsImages, load_tfds
from kdjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
read_only_builder = pytest.importorskip("tensorflow_datasets.core.read_only_builder")
image_module = pytest.importorskip("PIL.Image")


def image_of(i, size=6):
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)


def png(i, size):
    file = io.BytesIO()  # encoded here, since tfds would encode an array with TensorFlow
    image_module.fromarray(image_of(i, size)).save(file, "PNG")
    file.seek(0)
    return file


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Returns rows 0 to 11 for the first split and 12 to 17 for the second."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(12), "test": range(12, 18)}
    LABEL = tfds.features.ClassLabel(num_classes=3)

    def _info(self):
        image, text = tfds.features.Image(shape=(None, None, 3)), tfds.features.Text()
        features = {"image": image, "label": self.LABEL, "id": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._examples(rows) for split, rows in self.SPLITS.items()}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, rows):
        for i in rows:
            yield i, {"image": png(i, self.size(i)), "label": i % 3, "id": f"{i:05d}"}

    def size(self, i):
        return 6


def prepare(folder, name, file_format="array_record", **attributes):
    """Writes a set called `name` into `folder`, as `tfds.data_source` would."""
    builder = type("".join(part.title() for part in name.split("_")), (_Builder,), attributes, skip_registration=True)
    builder.name = name
    builder(data_dir=str(folder), file_format=file_format).download_and_prepare()


def load(name, folder, **fields):
    config = ConfigDict({**defaults().data.to_dict(), "name": name, "validation": 0.0, **fields})
    return load_dataset(config, str(folder))


def refused(pattern, name, folder):
    with pytest.raises(UserError, match=pattern) as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("second", ["test", "validation", None])
def test_a_prepared_set_is_read_in_the_order_of_its_ids(tmp_path, second):
    splits = {"train": range(12)} | ({second: range(12, 18)} if second else {})
    prepare(tmp_path, "tiny_shapes", SPLITS=splits)
    data = load("tfds:tiny_shapes", tmp_path, args={"mean": [0.4, 0.5, 0.6]} if second else {"test": 0.25})
    count = 18 if second else 12
    np.testing.assert_array_equal(data.images, np.stack([image_of(i) for i in range(count)]))
    np.testing.assert_array_equal(data.labels, np.arange(count) % 3)
    assert len(data.splits["test"]) == (6 if second else 3) and data.num_classes == 3
    assert data.stored.mean == ((0.4, 0.5, 0.6) if second else (0.5,)) and resolve_view(data, "") == "none"
    assert "tensorflow" not in sys.modules


def test_cifar_falls_back_to_a_prepared_copy(tmp_path):
    prepare(tmp_path, "cifar10", LABEL=tfds.features.ClassLabel(num_classes=10))
    data = load("cifar10", tmp_path)
    assert data.num_classes == 10 and data.stored.views[0] == "crop_flip" and len(data.splits["train"]) == 12


def test_a_set_that_is_not_prepared_is_refused(tmp_path):
    line = r"'tfds:mnist' is not in .*; prepare it once with: python -m kdjax.prepare_data tfds:mnist --data_dir="
    refused(line, "tfds:mnist", tmp_path)
    (tmp_path / "mnist").mkdir()
    refused("cannot be read .*prepare it once with", "tfds:mnist", tmp_path)
    (tmp_path / "no_such_set").mkdir()
    refused("cannot be read .*prepare it once with", "tfds:no_such_set", tmp_path)


def test_a_set_in_a_format_without_random_access_is_refused(tmp_path):
    prepare(tmp_path, "tiny_records", file_format="array_record")
    info = tmp_path / "tiny_records" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    refused("file format .*TFRECORD is not supported", "tfds:tiny_records", tmp_path)


SIZES = {
    "ragged": lambda self, i: 6 + i % 2,
    "two_sizes": lambda self, i: 6 if i < 12 else 5,
    "large_ones": lambda self, i: 65,
}


@pytest.mark.parametrize("name", SIZES)
def test_large_images_and_images_of_different_sizes_stay_encoded(tmp_path, name):
    prepare(tmp_path, name, size=SIZES[name])
    rows = load_tfds(str(tmp_path), name=name)
    images = pickle.loads(pickle.dumps(rows.images))  # as they are sent to a worker process
    assert isinstance(images, TfdsImages) and len(images) == 18 and images.shape == (18,) and images.channels == 3
    for i in range(18):
        np.testing.assert_array_equal(decode(images, i), image_of(i, SIZES[name](None, i)))
    np.testing.assert_array_equal(rows.labels, np.arange(18) % 3)
    assert rows.num_train == 12 and rows.num_classes == 3 and "'test', record" in images.name(12)
    assert "tensorflow" not in sys.modules
    if name == "large_ones":
        assert load(f"tfds:{name}", tmp_path).images.shape == (18, 65, 65, 3)  # all of one size, hence decoded
    else:
        refused("images differ in size: set config.data.size", f"tfds:{name}", tmp_path)
        assert load(f"tfds:{name}", tmp_path, size=4).streamed


def test_labels_are_read_from_the_records_once(tmp_path, monkeypatch):
    prepare(tmp_path, "read_once", size=SIZES["large_ones"])
    first = load_tfds(str(tmp_path), name="read_once")
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source, "_scan_records", None)
        again = load_tfds(str(tmp_path), name="read_once")
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.images.position, again.images.position)
    kept = tmp_path / "read_once" / "1.0.0" / "kdjax_rows_train.npz"
    kept.write_bytes(kept.read_bytes()[:100])  # damaged, hence made again
    np.testing.assert_array_equal(load_tfds(str(tmp_path), name="read_once").labels, first.labels)
    info = kept.with_name("dataset_info.json")
    os.utime(info, ns=(2 * kept.stat().st_mtime_ns,) * 2)  # the set was prepared again, hence made again
    assert tfds_source._kept(kept, 12, info) is None


def test_equal_images_of_two_splits_are_found_without_reading_them_again(tmp_path):
    same = {"_examples": lambda self, rows: ((i, {"image": png(i % 14, 65), "label": 0, "id": f"{i}"}) for i in rows)}
    prepare(tmp_path, "overlapping", **same)
    images = load_tfds(str(tmp_path), name="overlapping").images
    assert overlaps(images, {"train": np.arange(12), "test": np.arange(12, 18)}) == {("train", "test"): 4}


def test_a_test_split_without_labels_is_ignored(tmp_path):
    hidden = lambda self, rows: (  # noqa: E731
        (i, {"image": png(i, 6), "label": i % 3 if i < 18 else -1, "id": f"{i:05d}"}) for i in rows
    )
    splits = {"train": range(12), "validation": range(12, 18), "test": range(18, 20)}
    prepare(tmp_path, "hidden_labels", SPLITS=splits, _examples=hidden)
    data = load("tfds:hidden_labels", tmp_path)
    np.testing.assert_array_equal(data.images[data.splits["test"]], np.stack([image_of(i) for i in range(12, 18)]))


@pytest.mark.parametrize("name, shape", [("fashion_mnist", (28, 28, 1)), ("svhn", (32, 32, 3))])
def test_known_sets_as_mock_data_has_them(tmp_path, monkeypatch, name, shape):
    """Uses tensorflow-datasets' own code for the sets; only their content is made up."""
    own = {"svhn": "svhn_cropped"}.get(name, name)
    (tmp_path / own).mkdir()
    with tfds.testing.mock_data(num_examples=7), monkeypatch.context() as patch:
        patch.setattr(read_only_builder, "builder_from_files", tfds.builder)
        patch.setattr(tfds.core.DatasetInfo, "splits", dict.fromkeys(["train", "test"]))
        data = load(name, tmp_path)
    assert data.images.shape == (14, *shape) and data.num_classes == 10 and len(data.splits["test"]) == 7
    assert data.input_shape == DATASETS[name].shape == shape


def test_a_set_without_classes_is_refused(tmp_path):
    prepare(tmp_path, "no_classes", LABEL=tfds.features.Scalar(np.int64))
    refused("must have an 'image' and a 'label' with a number of classes", "tfds:no_classes", tmp_path)


def test_a_set_without_training_images_is_refused(tmp_path):
    prepare(tmp_path, "only_test", SPLITS={"test": range(4)})
    refused("has no split 'train'", "tfds:only_test", tmp_path)
