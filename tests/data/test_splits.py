"""Splits: disjoint, complete, stratified, a function of the split seed alone."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import Rows, load_dataset, make_splits, split_hash
from kdjax.errors import UserError


def rows_of(labels, num_train=None, test=0.2):
    labels = np.asarray(labels, np.int32)
    return Rows(np.zeros((len(labels), 1), np.float32), labels, None, int(labels.max()) + 1, num_train, test)


UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 100, 7, 253]))


@pytest.mark.parametrize("num_train", [None, 300])
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.37])
def test_splits_are_disjoint_and_cover(num_train, validation):
    splits = make_splits(rows_of(UNEVEN, num_train), validation, 3)
    assert set(splits) == {"train", "test"} | ({"validation"} if validation else set())
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(400))
    for split in splits.values():
        assert split.dtype == np.int32 and (np.diff(split) > 0).all()


def test_official_test_rows_stay_the_test_split():
    splits = make_splits(rows_of(UNEVEN, 300), 0.5, 9)
    np.testing.assert_array_equal(splits["test"], np.arange(300, 400))


def test_every_class_has_its_share_in_every_split():
    splits = make_splits(rows_of(UNEVEN, test=0.25), 0.2, 5)
    assert len(splits["test"]) == 100 and len(splits["validation"]) == 60
    for name, share in (("test", 0.25), ("validation", 0.75 * 0.2), ("train", 0.75 * 0.8)):
        counts = np.bincount(UNEVEN[splits[name]], minlength=4)
        assert (np.abs(counts - share * np.bincount(UNEVEN)) < 2).all(), name


def test_within_a_class_every_row_is_held_out_equally_often():
    labels = np.arange(40) % 2
    held_out = [make_splits(rows_of(labels, 40), 0.25, seed)["validation"] for seed in range(800)]
    counts = np.bincount(np.concatenate(held_out), minlength=40)
    assert (np.abs(counts - 200) < 6 * np.sqrt(800 * 0.25 * 0.75)).all()


def test_too_few_examples_for_all_classes_do_not_favour_the_first():
    """Two of ten equal classes get an example; over many seeds every class gets one."""
    labels = np.arange(100) % 10
    held_out = [make_splits(rows_of(labels, 100), 0.02, seed)["validation"] for seed in range(200)]
    turns = np.bincount(labels[np.concatenate(held_out)], minlength=10)
    assert turns.sum() == 400 and turns.min() > 15


def test_the_test_split_does_not_depend_on_the_validation_fraction():
    a, b = (make_splits(rows_of(UNEVEN), validation, 2) for validation in (0.1, 0.3))
    np.testing.assert_array_equal(a["test"], b["test"])


def test_other_seeds_give_other_splits():
    found = {split_hash(make_splits(rows_of(UNEVEN, 300), 0.1, seed)["validation"]) for seed in range(50)}
    assert len(found) == 50


def test_splits_do_not_depend_on_the_run_seed():
    hashes = []
    for seed in (0, 1):
        config = defaults()
        config.seed = seed
        hashes.append({name: split_hash(rows) for name, rows in load_dataset(config.data, "").splits.items()})
    assert hashes[0] == hashes[1]


def test_splits_of_digits_are_pinned():
    """The same images are held out on every machine and NumPy; otherwise students could not use their teachers."""
    config = ConfigDict(defaults().data.to_dict())
    config.validation = 1 / 6
    splits = load_dataset(config, "").splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1198, "validation": 240, "test": 359}
    assert {name: split_hash(rows)[:16] for name, rows in splits.items()} == PINNED


PINNED = {"train": "b11c26cbb3a8b93b", "validation": "94480b5580ff4d13", "test": "85cf4747137a7c9d"}


def test_hash_is_of_the_set_of_rows():
    assert split_hash(np.array([3, 1, 2], np.int32)) == split_hash(np.array([1, 2, 3], np.int64))
    assert split_hash(np.array([1, 2, 3])) != split_hash(np.array([1, 2, 4]))
    # sha256 of the 16 bytes 01 00.. 00 02 00.. 00
    assert split_hash(np.array([2, 1])) == "0c730b69905c5ef7a4ca5269f72365400bde2dd2c04eaf9bbb3d1c4a265a0131"


@pytest.mark.parametrize("validation", [0.001, 0.9999])
def test_a_fraction_that_holds_out_nothing_is_refused(validation):
    with pytest.raises(UserError, match=r"config.data.validation = .* of 300 examples"):
        make_splits(rows_of(UNEVEN, 300), validation, 0)


def test_there_is_no_validation_split_if_nothing_is_held_out():
    assert set(make_splits(rows_of(UNEVEN, 400), 0.0, 0)) == {"train"}
