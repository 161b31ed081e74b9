"""The real data sets of tests that need them.

They are read from the folder that the environment variable KDJAX_TEST_DATA names, or else from the folder `data` of the
project. Tests of sets that are not there are skipped.
"""

import os
import pathlib
from typing import Any

import pytest

from kdjax.config import defaults
from kdjax.data import Dataset, load_dataset
from kdjax.errors import UserError

DATA_DIR = pathlib.Path(os.environ.get("KDJAX_TEST_DATA") or pathlib.Path(__file__).parents[2] / "data").absolute()


def load_or_skip(**fields: Any) -> Dataset:
    """Returns the data set that fields of config.data name, or skips the test if it is not there."""
    config = defaults()
    config.data.update(fields)
    try:
        return load_dataset(config.data, str(DATA_DIR))
    except UserError as error:
        pytest.skip(f"set KDJAX_TEST_DATA to a folder with the data: {error}")


def photographs(count: int) -> tuple:
    """Returns the first test images of CIFAR-10, [count, 32, 32, 3] uint8, and their labels, or skips the test."""
    dataset = load_or_skip(name="cifar10")
    rows = dataset.splits["test"][:count]
    return dataset.images[rows], dataset.labels[rows]
