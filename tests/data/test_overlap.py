"""Images that two splits share: how they are counted, when they are refused, and the accuracy without them."""

import time

import numpy as np
import pytest

from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.encoded import Encoded, Files
from kdjax.data.overlap import TAIL, check_overlap, overlaps, shared_rows
from kdjax.data.tfds_source import is_official
from kdjax.errors import UserError
from kdjax.inspection.predict import predict_run, score_run
from kdjax.store import Store
from kdjax.training.loop import train

SPLITS = {"train": np.arange(10), "validation": np.arange(10, 15), "test": np.arange(15, 20)}
SHARED = {("train", "test"): 2, ("validation", "test"): 1}


class Bytes(Encoded):
    def __init__(self, content):
        self.content = content

    def __len__(self):
        return len(self.content)

    def encoded(self, row):
        return self.content[row]

    def name(self, row):
        return str(row)


def images():
    """Rows 15 and 16 are also in the training split, row 17 in validation; rows 18 and 19 of the test are the same."""
    array = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), np.uint8)
    array[[15, 16, 17, 18]] = array[[3, 4, 11, 19]]
    return array


def files(folder, contents):
    for i, content in enumerate(contents):
        (folder / f"{i}.png").write_bytes(content)
    return Files([str(folder / f"{i}.png") for i in range(len(contents))])


@pytest.mark.parametrize("kind", ["uint8", "float32", "vectors", "bytes", "files"])
def test_shared_images_are_counted(tmp_path, kind):
    array = images()
    content = [image.tobytes() for image in array]
    made = {
        "uint8": lambda: array,
        "float32": lambda: array.astype(np.float32),
        "vectors": lambda: array.reshape(20, -1),
        "bytes": lambda: Bytes(content),
        "files": lambda: files(tmp_path, content),
    }[kind]()
    assert overlaps(made, SPLITS) == SHARED
    assert overlaps(made, {"train": SPLITS["train"], "validation": SPLITS["validation"]}) == {}
    assert shared_rows(made, SPLITS, "test").tolist() == [15, 16, 17]
    assert shared_rows(made, SPLITS, "validation").tolist() == [11]
    assert not len(shared_rows(made, {"train": SPLITS["train"]}, "test"))


def test_files_that_differ_late_or_early_or_are_links(tmp_path):
    base = images()[0].tobytes()
    assert len(base) > 2 * TAIL
    late, early = base[:-1] + bytes([base[-1] ^ 1]), bytes([base[0] ^ 1]) + base[1:]
    paths = files(tmp_path, [base, late, early, b"", base[:10]]).paths
    splits = {"train": [0, 4], "test": [1, 2, 3]}
    assert overlaps(Files(paths), splits) == {}
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    assert overlaps(Files([*paths, str(tmp_path / "link.png")]), {**splits, "test": [1, 2, 5]}) == {
        ("train", "test"): 1
    }
    assert overlaps(Files(paths), {"train": [0], "test": [0, 1]}) == {("train", "test"): 1}
    with pytest.raises(UserError, match="gone.png cannot be read"):
        overlaps(Files([*paths, str(tmp_path / "gone.png")]), {"train": [0], "test": [5]})


def test_an_overlap_is_refused_or_warned_of(caplog):
    line = "data set 'mine' has the same images in two splits: train and test share 2, validation and test share 1"
    with pytest.raises(UserError, match=f"{line}; set config.data.allow_overlap") as caught:
        check_overlap("mine", images(), SPLITS, allow=False)
    assert "\n" not in str(caught.value)
    check_overlap("mine", images(), SPLITS, allow=True)
    assert line in caplog.text
    check_overlap("mine", images(), {"train": SPLITS["train"]}, allow=False)


def test_an_overlap_of_official_splits_is_reported_with_what_to_do_and_never_refused(caplog):
    check_overlap("known", images(), SPLITS, allow=False, official=True)
    check_overlap("known", images(), SPLITS, allow=False, official=True)
    line = "two splits as published: train and test share 2, validation and test share 1; config.data.report_unshared"
    assert caplog.text.count(line) == 1
    assert is_official("mnist") and is_official("svhn_cropped:3.0.0") and not is_official("my_own_set")


# ---- a small set in the official files of CIFAR-100, of which the last two test images are also in its training file


def write_cifar100(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 3072), np.uint8)
    pixels[26:] = pixels[:2]
    rows = np.hstack([np.zeros((28, 1), np.uint8), np.arange(28, dtype=np.uint8)[:, None] % 4, pixels])
    (folder / "cifar-100-binary").mkdir()
    for name, part in (("train", rows[:20]), ("test", rows[20:])):
        (folder / "cifar-100-binary" / f"{name}.bin").write_bytes(part.tobytes())


def config_of(name, **data):
    config = defaults()
    config.epochs, config.batch_size, config.eval_batch_size = 1, 4, 4
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.model.args = {"hidden": (8,)}
    config.data.update({"name": name, "view": "none", **data})
    return config


@pytest.mark.parametrize("stream", ["never", "always"])
def test_both_accuracies_of_a_known_set_are_reported(tmp_path, one_device, stream):
    write_cifar100(tmp_path)
    store = Store(tmp_path / "runs")
    config = config_of("cifar100", report_unshared=True, validation=0.2, stream=stream, workers=0)
    result = train(config, store, name="a", data_dir=str(tmp_path), devices=one_device, show=False)
    predicted = predict_run(store, "a", data_dir=str(tmp_path), devices=one_device)
    right = predicted.logits.argmax(axis=-1) == np.arange(20, 28) % 4
    assert result["last"]["test"]["accuracy"] == pytest.approx(right.mean())
    assert result["last"]["test"]["accuracy_unshared"] == pytest.approx(right[:6].mean())
    assert "accuracy_unshared" not in result["last"]["validation"]
    scores = score_run(store, "a", data_dir=str(tmp_path), devices=one_device)
    assert scores["test"] == pytest.approx(result["last"]["test"])
    assert store.find("a").metrics()[0]["test"]["accuracy_unshared"] == pytest.approx(right[:6].mean())


def test_the_images_left_out_depend_on_neither_protocols_nor_the_split_seed(tmp_path):
    write_cifar100(tmp_path)
    fields = [{}, {"split_seed": 3}, {"validation": 0.0}, {"protocols": {"drop_classes": {"classes": (0, 1)}}}]
    for field in fields:
        dataset = load_dataset(config_of("cifar100", report_unshared=True, **field).data, str(tmp_path))
        assert dataset.official and dataset.shared_test.tolist() == [26, 27]
    assert load_dataset(config_of("cifar100").data, str(tmp_path)).shared_test is None


def test_the_users_own_set_is_refused_before_anything_is_written(tmp_path, one_device):
    own = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    labels = np.arange(20) % 4
    np.savez(tmp_path / "own.npz", images=own, labels=labels, test_images=own[:4], test_labels=labels[:4])
    config = config_of("arrays", args={"path": str(tmp_path / "own.npz")}, validation=0.0)
    with pytest.raises(UserError, match="train and test share 4; set config.data.allow_overlap = True"):
        train(config, Store(tmp_path / "runs"), name="a", devices=one_device, show=False)
    assert not (tmp_path / "runs").exists()
    config.data.allow_overlap = config.data.report_unshared = True
    test = train(config, Store(tmp_path / "runs"), name="a", devices=one_device, show=False)["last"]["test"]
    assert test["accuracy_unshared"] == 0  # no test image is left


def test_comparing_all_of_cifar_is_fast():
    array = np.random.default_rng(0).integers(0, 256, (60_000, 3072), np.uint8)
    start = time.perf_counter()
    assert overlaps(array, {"train": np.arange(50_000), "test": np.arange(50_000, 60_000)}) == {}
    assert time.perf_counter() - start < 5  # 0.2 s where nothing else runs
