"""Sources: their arrays, their defaults, reading them once per process, and one-line errors."""

import dataclasses
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import DATASETS, Rows, Source, load_dataset, resolve_view
from kdjax.errors import UserError


def load(name, data_dir="", view="", args=None, **fields):
    config = ConfigDict({**defaults().data.to_dict(), "name": name, "args": args or {}, **fields})
    return load_dataset(config, str(data_dir))


def refused(pattern, *args, **kwargs):
    with pytest.raises(UserError, match=pattern) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_digits_are_real_bytes_near_mean_0_and_std_1():
    data = load("digits")
    assert data.images.shape == (1797, 8, 8, 1) and data.images.dtype == np.uint8 and data.images.max() == 16
    assert data.labels.dtype == np.int32 and data.num_classes == 10 and data.soft is None
    values = (data.images * data.stored.scale - data.stored.mean) / data.stored.std
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert resolve_view(data, "") == "none" and resolve_view(data, "crop") == "crop"


def test_arrays_are_shared_between_split_seeds_and_runs():
    a, b = load("digits", split_seed=0), load("digits", split_seed=1)
    assert a.images is b.images and a.labels is b.labels
    assert not np.array_equal(a.splits["test"], b.splits["test"])
    a, b = (load("gaussian", args=args) for args in ({"n_test": 5, "n_train": 90}, {"n_train": 90, "n_test": 5}))
    assert a.soft is b.soft


def test_a_data_set_is_frozen_and_its_units_are_hashable():
    data = load("digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"
    assert hash(data.stored) == hash(load("digits", split_seed=1).stored)


@pytest.mark.parametrize(
    ("view", "words"),
    [("crop_flip", "'digits' must not be flipped"), ("crpo", "unknown view 'crpo'. Did you mean 'crop'")],
)
def test_a_view_that_the_data_does_not_allow_is_refused(view, words):
    with pytest.raises(UserError, match=f"config.data.view '{view}'.*{words}"):
        resolve_view(load("digits"), view)


GAUSSIAN = {"classes": 4, "dim": 5, "n_train": 3000, "n_test": 1000, "variance": 3.0, "delta": 2.0, "seed": 7}


def centres_of(data):
    """Returns the grid points nearest to the class means, which are within 0.06 of the centres for 1,000 draws each."""
    return np.stack([2 * np.round(data.images[data.labels == k].mean(axis=0) / 2) for k in range(4)])


def test_gaussian_posterior_is_the_formula():
    data = load("gaussian", args=GAUSSIAN)
    assert data.images.shape == (4000, 5) and data.images.dtype == np.float32 and data.stored.views == ("none",)
    np.testing.assert_array_equal(data.splits["test"], np.arange(3000, 4000))
    x, centres = data.images.astype(np.float64), centres_of(data)
    density = np.exp(-((x[:, None] - centres) ** 2).sum(axis=2) / (2 * 3.0))
    np.testing.assert_allclose(data.soft, density / density.sum(axis=1, keepdims=True), atol=1e-9)


def test_gaussian_labels_are_draws_from_the_posterior():
    """If p* of a class is about 30 %, about 30 % of the labels are that class, within five standard deviations."""
    data = load("gaussian", args={**GAUSSIAN, "n_train": 20000})
    drawn = np.eye(4)[data.labels].ravel()
    said = data.soft.ravel()
    for low in np.arange(0, 1, 0.1):
        bin_ = (said >= low) & (said < low + 0.1)
        deviation = np.sqrt((said[bin_] * (1 - said[bin_])).sum())
        assert abs((drawn[bin_] - said[bin_]).sum()) < 5 * deviation


def test_gaussian_noise_has_the_variance_that_was_asked_for():
    data = load("gaussian", args=GAUSSIAN)
    noise = data.images - centres_of(data)[data.labels]
    assert abs(noise.var() - 3.0) < 0.15  # 5 deviations


def test_gaussian_changes_with_its_own_seed_only():
    a, same = load("gaussian", args=GAUSSIAN), load("gaussian", args=GAUSSIAN, split_seed=4)
    other = load("gaussian", args={**GAUSSIAN, "seed": 8})
    np.testing.assert_array_equal(a.images, same.images)
    assert not np.array_equal(a.images, other.images)


def npz(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return {"path": str(folder / "own.npz")}


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4
BOTH = {"images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}


def test_arrays_of_bytes_with_a_test_set(tmp_path):
    args = npz(tmp_path, images=IMAGES, labels=LABELS, test_images=IMAGES[:7], test_labels=LABELS[:7])
    data = load("arrays", args=args, validation=0.25)
    np.testing.assert_array_equal(data.images, np.concatenate([IMAGES, IMAGES[:7]]))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 30, "validation": 10, "test": 7}
    np.testing.assert_array_equal(data.splits["test"], np.arange(40, 47))
    assert data.num_classes == 4
    assert data.stored[:4] == (1 / 255, (0.5,), (0.5,), ("none", "crop", "crop_flip"))


def test_units_and_number_of_classes_of_arrays_can_be_set(tmp_path):
    units = {"mean": [0.1, 0.2, 0.3], "std": 2, "scale": 1.0}
    args = npz(tmp_path, images=IMAGES, labels=LABELS) | units | {"num_classes": 9}
    data = load("arrays", args=args, validation=0.0)
    assert data.num_classes == 9 and data.stored[:3] == (1.0, (0.1, 0.2, 0.3), (2.0,))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 32, "test": 8}
    assert len(load("arrays", args={**args, "test": 0.5}).splits["test"]) == 20


def test_labels_of_one_annotator_and_the_mean_of_others(tmp_path):
    people = np.random.default_rng(0).integers(0, 4, (3, 40))
    own = dict(zip(("first", "second", "third"), people, strict=True))
    args = npz(tmp_path, images=IMAGES, **own, test_images=IMAGES[:7], test_labels=LABELS[:7])
    data = load("arrays", args={**args, "labels": "second", "annotators": ["first", "third"]}, validation=0.0)
    np.testing.assert_array_equal(data.labels, np.concatenate([people[1], LABELS[:7]]))
    mean = (np.eye(4)[people[0]] + np.eye(4)[people[2]]) / 2
    np.testing.assert_array_equal(data.soft, np.concatenate([mean, np.eye(4)[LABELS[:7]]]))
    assert load("arrays", args={**args, "labels": "third"}, validation=0.0).soft is None
    with pytest.raises(UserError, match="no array 'fourth'"):
        load("arrays", args={**args, "labels": "fourth"})
    with pytest.raises(UserError, match="'images' must hold as many labels"):
        load("arrays", args={**args, "labels": "first", "annotators": ["images"]})


def test_arrays_of_float_vectors_with_soft_labels_found_in_data_dir(tmp_path):
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 40)
    npz(tmp_path, images=IMAGES.reshape(40, -1).astype(np.float64), labels=LABELS, soft=soft)
    data = load("arrays", tmp_path, args={"path": "own.npz"}, targets="soft")
    assert data.images.dtype == np.float64 and data.stored[:4] == (1.0, (0.0,), (1.0,), ("none",))
    np.testing.assert_array_equal(data.soft, soft)


@pytest.mark.parametrize(
    "arrays, args, pattern",
    [
        ({"image": IMAGES, "labels": LABELS}, {}, r"has no array 'images'\. Did you mean 'image'\?"),
        ({"images": IMAGES, "labels": LABELS[:-1]}, {}, r"images \[40, 6, 5, 3\] and labels \[39\] differ in length"),
        (
            {"images": np.zeros((len(LABELS), 3, 8, 8), np.uint8), "labels": LABELS},
            {},
            r"order \(channels, height, width\); give images\.transpose\(0, 2, 3, 1\)",
        ),
        ({"images": np.zeros((40, 12, 8, 8), np.uint8), "labels": LABELS}, {}, r"order \(channels, height, width\)"),
        ({"images": IMAGES[..., 0], "labels": LABELS}, {}, r"channels\].*, not \[40, 6, 5\]; give images\[\.\.\., N"),
        ({"images": IMAGES.astype(np.int64), "labels": LABELS}, {}, r"float64, not int64; give .*astype\(np.uint8\)"),
        ({"images": IMAGES.astype(np.uint16), "labels": LABELS}, {}, r"np.round\(images / 257\)"),
        ({"images": IMAGES * np.float32(np.nan), "labels": LABELS}, {}, "not finite"),
        ({"images": IMAGES * 1e300, "labels": LABELS}, {}, "not finite in float32"),
        ({"images": IMAGES, "labels": LABELS / 2}, {}, r"labels must be integers \[40\], .*, not float64 \[40\]\.$"),
        ({"images": IMAGES, "labels": LABELS / 1}, {}, r"give labels\.astype\(int\)"),
        ({"images": IMAGES, "labels": LABELS.astype(str)}, {}, r"give np\.unique\(labels, return_inverse=True\)\[1\]"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, {}, r"give labels\[:, 0\]"),
        ({"images": IMAGES, "labels": np.eye(4)[LABELS]}, {}, r"give labels\.argmax\(axis=1\)"),
        ({"images": IMAGES, "labels": LABELS}, {"num_classes": 4.0}, "num_classes must be an integer or None, not 4.0"),
        ({"images": IMAGES, "labels": LABELS, "soft": np.float32(1)}, {}, r"soft must be float.* \[40, 4\]"),
        ({"images": IMAGES, "labels": LABELS}, {"mean": "grey"}, "mean must be a finite number"),
        ({"images": IMAGES, "labels": LABELS - 1}, {}, r"labels must be in \[0, 2\], but range from -1 to 2"),
        ({"images": IMAGES, "labels": LABELS}, {"num_classes": 3}, r"must be in \[0, 2\], but range from 0 to 3"),
        ({"images": IMAGES, "labels": 0 * LABELS}, {}, "at least 2 classes, not 1"),
        ({"images": IMAGES, "labels": LABELS, "soft": np.ones((40, 4))}, {}, "must be a distribution"),
        ({"images": IMAGES, "labels": LABELS, "soft": np.eye(5)[:, :4]}, {}, r"soft must be float.* \[40, 4\]"),
        ({"images": IMAGES, "labels": LABELS}, {"std": 0.0}, "scale and std must be above 0, and"),
        ({"images": IMAGES, "labels": LABELS}, {"mean": [0.1, 0.2]}, "mean must have 1 value or 3"),
        ({"images": IMAGES, "labels": LABELS}, {"test": 1.5}, r"'test' must be in \[0, 1\)"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, {}, "has no array 'test_labels'"),
        (
            {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, :5], "test_labels": LABELS}, {},
            r"images uint8 \[40, 6, 5, 3\] and test_images uint8 \[40, 5, 5, 3\] differ",
        ),
        (
            {**BOTH, "soft": np.eye(4)[LABELS]}, {}, "has soft for only one of training and test",
        ),
        ({"images": np.array([None, 1]), "labels": LABELS}, {}, "not an .npz file of plain arrays"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, args, pattern):
    refused(pattern, "arrays", args=npz(tmp_path, **arrays) | args)


def test_classes_without_examples_and_floats_like_bytes_are_warned_of(tmp_path, caplog):
    labels = np.where(LABELS == 2, 3, LABELS)
    args = npz(tmp_path, images=IMAGES.astype(np.float32), labels=labels)
    assert load("arrays", args=args).num_classes == 4
    assert "1 of the 4 classes have no example, the first is class 2" in caplog.text
    assert "images are floats up to 255, which are not scaled" in caplog.text
    caplog.clear()
    load("arrays", args={**args, "num_classes": 4, "scale": 1 / 255})
    assert not caplog.text


def test_missing_and_damaged_files_of_arrays_are_refused(tmp_path):
    refused(r"there is no such file in the current directory or in", "arrays", tmp_path, args={"path": "missing.npz"})
    (tmp_path / "text.npz").write_text("no zip")
    refused("not an .npz file of plain arrays", "arrays", tmp_path, args={"path": "text.npz"})
    np.save(tmp_path / "one.npy", IMAGES)
    refused("not an .npz file of plain arrays", "arrays", tmp_path, args={"path": "one.npy"})
    whole = (tmp_path / "own.npz") if npz(tmp_path, images=IMAGES, labels=LABELS) else None
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:2000])
    refused("not an .npz file of plain arrays", "arrays", tmp_path, args={"path": "half.npz"})
    refused("config.data.args: data set 'arrays' needs 'path'", "arrays")


def test_mistakes_in_a_config_are_named():
    refused(r"unknown data set 'digit'\. Did you mean 'digits'\?", "digit")
    refused(r"config.data.args: data set 'gaussian' takes no 'n_trian'\. Did you mean 'n_train'\?",
            "gaussian", args={"n_trian": 3})  # fmt: skip
    refused("'gaussian' needs classes >= 2", "gaussian", args={"classes": 1})
    refused("data set 'digits' has no soft labels; set it to 'labels'", "digits", targets="soft")
    refused("config.data.validation = 0.0001 holds out 0", "digits", validation=0.0001)
    refused("config.data.args.classes must be an integer, not 'ten'", "gaussian", args={"classes": "ten"})
    refused("data set 'gaussian' could not be loaded with .*OverflowError", "gaussian", args={"seed": -1})


OWN = """
import numpy as np
from kdjax.data import Rows, Source

def rows(data_dir, *, count=30, broken=False):
    if broken:
        raise RuntimeError("out of luck\\nsecond line")
    return Rows(np.zeros((count, 4, 4, 1), np.uint8), [i % 3 for i in range(count)], None, 3)

source = Source(rows, 1 / 2, (0.25,), (0.5,), ("crop", "none"))
wrong = lambda data_dir: (1, 2)
misnamed = lambda data_dir: rows(data_dir)._replace(class_names=("a", "b"))
vectors = Source(lambda data_dir: Rows(np.zeros((9, 2), np.float32), np.arange(9) % 3, None, 3), views=("crop",))
"""


def test_the_users_own_sources_work_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "own_source_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    plain = load("own_source_module:rows", args={"count": 60})
    assert len(plain.labels) == 60 and plain.stored[:4] == (1 / 255, (0.5,), (0.5,), ("none", "crop", "crop_flip"))
    full = load("own_source_module:source")
    assert full.stored[:4] == (0.5, (0.25,), (0.5,), ("crop", "none")) and resolve_view(full, "") == "crop"
    refused("must return kdjax.data.Rows, not tuple", "own_source_module:wrong")
    refused("2 class_names for 3 classes", "own_source_module:misnamed")
    refused("their only view is 'none'", "own_source_module:vectors")
    refused("RuntimeError: out of luck", "own_source_module:rows", args={"broken": True})
    refused("Did you mean 'count'", "own_source_module:rows", args={"cuont": 1})
    refused("has no 'rwos'", "own_source_module:rwos")
    sys.modules.pop("own_source_module")


def test_the_table_is_made_of_sources_with_known_views():
    for source in DATASETS.values():
        assert isinstance(source, Source) and set(source.views or ()) <= {"none", "crop", "crop_flip"}
    assert Rows._fields[:4] == ("images", "labels", "soft", "num_classes")
