"""CIFAR-10H: human labels beside the test images; another order or other content is refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.cifar10h import load_cifar10h
from kdjax.errors import UserError
from tests.data.real_data import DATA_DIR, load_or_skip
from tests.data.test_cifar import content, files_of, unpack

ARCHIVE = "cifar-10-python.tar.gz"


def counts_of(labels):
    """Returns the counts of 50 people, of whom 40 choose the label and 10 the class after it."""
    counts = np.zeros((len(labels), 10), np.int64)
    counts[np.arange(len(labels)), labels] += 40
    counts[np.arange(len(labels)), (labels + 1) % 10] += 10
    return counts


@pytest.fixture
def cifar(tmp_path):
    """Writes tiny files in CIFAR-10's format; returns their folder, the test images and their labels."""
    unpack(tmp_path, ARCHIVE, files_of("cifar10", ARCHIVE))
    return tmp_path, *content("cifar10")[-1]


def refused(pattern, folder, **kwargs):
    with pytest.raises(UserError, match=pattern) as caught:
        load_cifar10h(str(folder), **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["probs", "counts", "npz"])
def test_test_images_with_soft_labels(cifar, kind):
    folder, images, labels = cifar
    counts, args = counts_of(labels), {"test": 1 / 3}
    if kind == "npz":
        np.savez(folder / "mine.npz", cifar10h_probs=counts / 50, label=labels)
        args["labels"] = "mine.npz"
    else:
        np.save(folder / f"cifar10h-{kind}.npy", counts / 50 if kind == "probs" else counts)
    config = ConfigDict({**defaults().data.to_dict(), "name": "cifar10h", "validation": 0.0, "targets": "soft"})
    config.args = args
    data = load_dataset(config, str(folder))
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    np.testing.assert_allclose(data.soft, counts / 50, atol=1e-7)
    assert data.soft.dtype == np.float32 and len(data.splits["test"]) == 1 and len(data.splits["train"]) == 2


def test_missing_files_and_other_content_are_refused(cifar):
    folder, _, labels = cifar
    refused("cifar10h-probs.npy is not in .*; prepare it once with: python -m kdjax.prepare_data cifar10h", folder)
    refused(r"\(labels no.npz\): there is no such file", folder, labels="no.npz")
    for name, values, pattern in [
        ("short", counts_of(labels[:-1]), r"must hold numbers \[3, 10\], not int64 \[2, 10\]"),
        ("halves", counts_of(labels) / 100, "must hold counts of people, or distributions: no negative values, sum 1"),
        (
            "negative",
            counts_of(labels) / 50 - np.eye(10)[:3] + np.eye(10)[1:4],
            "must hold counts of people, or distributions",
        ),
        ("nan", counts_of(labels) * np.nan, "must hold counts of people, or distributions"),
        ("order", np.roll(counts_of(labels), 3, axis=1), "the order differs, .* agree for only 0% of the images"),
        (
            "objects",
            np.full((3, 10), None),
            "is not an .npy or .npz file of plain arrays: Object arrays cannot be loaded",
        ),
    ]:
        np.save(folder / f"{name}.npy", values)
        refused(pattern, folder, labels=f"{name}.npy")
    np.savez(folder / "other.npz", probs=counts_of(labels))
    refused("has neither 'cifar10h_probs' nor 'cifar10h_counts'", folder, labels="other.npz")
    (folder / "cut.npz").write_bytes((folder / "other.npz").read_bytes()[:100])
    refused("is not an .npy or .npz file of plain arrays", folder, labels="cut.npz")


def test_the_real_labels_agree_with_the_real_order(tmp_path):
    """The human labels of CIFAR-10's test images, in the order of the images."""
    human = load_or_skip(name="arrays", args={"path": "cifar10_human.npz"})
    cifar = load_or_skip(name="cifar10")
    soft, test = human.soft[human.splits["test"]], cifar.splits["test"]
    np.save(tmp_path / "soft.npy", soft)
    rows = load_cifar10h(str(DATA_DIR), labels=str(tmp_path / "soft.npy"))
    np.testing.assert_array_equal(rows.images, cifar.images[test])
    np.testing.assert_array_equal(rows.labels, cifar.labels[test])
    np.testing.assert_allclose(rows.soft, soft, atol=1e-6)
    assert 0.99 < (rows.soft.argmax(axis=1) == rows.labels).mean() < 1 and rows.test == 0.5
