"""Reads CIFAR-10H: the test images of CIFAR-10 with labels from about 51 people each.

Peterson, Battleday, Griffiths & Russakovsky (2019), "Human Uncertainty Makes Classification More Robust".
"""

import pathlib

import numpy as np

from kdjax.bounded import read_arrays
from kdjax.data.cifar import load_cifar10
from kdjax.data.dataset import Rows
from kdjax.data.folders import find
from kdjax.data.tfds_source import how_to_prepare
from kdjax.errors import UserError

FILES = ("cifar10h-probs.npy", "cifar10h-counts.npy")  # either is enough
KEYS = ("cifar10h_probs", "cifar10h_counts")  # names of the array in an .npz file
# The most frequent human label is CIFAR-10's label for 99 % of the images, but for 10 % if the order is another one.
AGREEMENT = 0.9


def load_cifar10h(data_dir: str, *, labels: str = "", test: float = 0.5) -> Rows:
    """Returns the test images of CIFAR-10, in their original order, with human label distributions as `soft`.

    Args:
      data_dir: Directory of CIFAR-10 and of `cifar10h-probs.npy` or `cifar10h-counts.npy`.
      labels: Path of another .npy file of probabilities or counts, or of an .npz file with one of KEYS; '' for the
        files in `data_dir`.
      test: Fraction of the images that is drawn as the test split.

    Returns:
      The images, CIFAR-10's own labels, and soft [images, 10] float32.

    Raises:
      UserError: Files are missing or hold something else, or labels and images are not in the same order.
    """
    cifar = load_cifar10(data_dir)
    images, own = cifar.images[cifar.num_train :], cifar.labels[cifar.num_train :]
    file = _find(labels, data_dir)
    soft = _as_distributions(_read(file), (len(images), 10), file)
    agree = (soft.argmax(axis=1) == own).mean()
    if agree < AGREEMENT:
        raise UserError(
            f"data set 'cifar10h': the order differs, since {file} and CIFAR-10's test labels agree for only "
            f"{agree:.0%} of the images; both must be in the original order."
        )
    return Rows(images, own, soft, 10, test=test, class_names=cifar.class_names)


def _find(labels: str, data_dir: str) -> pathlib.Path:
    if labels:
        return find(labels, data_dir, f"data set 'cifar10h' (labels {labels})", pathlib.Path.is_file)
    there = [pathlib.Path(data_dir, name) for name in FILES if pathlib.Path(data_dir, name).is_file()]
    if not there:
        raise UserError(f"data set 'cifar10h': {FILES[0]} is not in {data_dir}; {how_to_prepare('cifar10h', data_dir)}")
    return there[0]


def _read(file: pathlib.Path) -> np.ndarray:
    try:
        stored = read_arrays(file)
        if isinstance(stored, np.ndarray):
            return stored
        key = next((key for key in KEYS if key in stored), None)
        if key is not None:
            return stored[key]
    except Exception as error:  # NumPy raises many types for damaged files
        reason = " ".join(str(error).split())
        raise UserError(f"data set 'cifar10h': {file} is not an .npy or .npz file of plain arrays: {reason}") from error
    raise UserError(f"data set 'cifar10h': {file} has neither '{KEYS[0]}' nor '{KEYS[1]}'.")


def _as_distributions(values: np.ndarray, shape: tuple[int, int], file: pathlib.Path) -> np.ndarray:
    """Returns probabilities unchanged and counts divided by their sum, as float32."""
    where = f"data set 'cifar10h': {file}"
    if values.shape != shape or values.dtype.kind not in "iuf":
        raise UserError(f"{where} must hold numbers {list(shape)}, not {values.dtype} {list(values.shape)}.")
    sums = values.sum(axis=1, keepdims=True, dtype=np.float64)
    counts = bool((values == np.round(values)).all()) and sums.min() > 1
    if not np.isfinite(sums).all() or values.min() < 0 or not (counts or np.allclose(sums, 1, atol=1e-3)):
        raise UserError(f"{where} must hold counts of people, or distributions: no negative values, sum 1.")
    return (values / sums).astype(np.float32)
