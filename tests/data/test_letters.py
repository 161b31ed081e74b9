"""Printed characters: small like the digits, with separate fonts for the test split."""

import string

import numpy as np
import pytest

from kdjax.data.letters import TEST_FONTS, TRAIN_FONTS, load_letters
from kdjax.data.overlap import overlaps
from kdjax.errors import UserError

from test_sources import load  # isort: skip


def test_images_are_like_digits_with_mean_0_and_std_1():
    data, digits = load("letters"), load("digits")
    assert data.images.shape[1:] == digits.images.shape[1:] and data.images.dtype == np.uint8
    assert data.images.max() == 16 and data.num_classes == 26 and data.class_names == tuple(string.ascii_uppercase)
    values = (data.images * data.stored.scale - data.stored.mean) / data.stored.std
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01


def test_every_character_is_drawn_as_often_in_every_font_and_test_fonts_only_in_the_test_split():
    rows = load_letters("", characters="ab7", copies=3)
    assert len(rows.labels) == 20 * 3 * 3 and rows.num_train == 15 * 3 * 3
    np.testing.assert_array_equal(np.bincount(rows.labels[: rows.num_train]), [45, 45, 45])
    assert not set(TRAIN_FONTS) & set(TEST_FONTS) and len({*TRAIN_FONTS, *TEST_FONTS}) == 20
    data = load("letters", args={"characters": "ab7", "copies": 3})
    assert data.splits["test"].min() == rows.num_train and not overlaps(data.images, data.splits)


def test_images_are_a_function_of_the_seed_and_copies_differ():
    a, b, c = (load_letters("", characters="xy", copies=2, seed=seed).images for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.1 and (a[0] != a[1]).any()


def test_a_neighbour_of_the_same_class_is_near():
    """The characters can be recognized: for most test images, the nearest training image has the right class."""
    data = load("letters", args={"characters": string.digits})
    flat = data.images.reshape(len(data.images), -1).astype(float)
    train, test = data.splits["train"], data.splits["test"]
    nearest = ((flat[test][:, None] - flat[train][None]) ** 2).sum(axis=-1).argmin(axis=1)
    assert (data.labels[train][nearest] == data.labels[test]).mean() > 0.9


@pytest.mark.parametrize(
    "args", [{"characters": "a"}, {"characters": "aa"}, {"characters": "aß"}, {"characters": "a\n"}, {"copies": 0}]
)
def test_what_cannot_be_drawn_is_refused_in_one_line(args):
    with pytest.raises(UserError, match="data set 'letters' needs") as refused:
        load_letters("", **args)
    assert len(str(refused.value).splitlines()) == 1
