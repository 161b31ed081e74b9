"""CIFAR-10H (Peterson et al., 2019): CIFAR-10's test images with what about 51 people said that each of them shows."""

import pathlib

import numpy as np

from kdjax.data.cifar import load_cifar10
from kdjax.data.dataset import Rows
from kdjax.data.folders import find
from kdjax.data.tfds_source import how_to_prepare
from kdjax.errors import UserError

FILES = ("cifar10h-probs.npy", "cifar10h-counts.npy")  # either is enough
KEYS = ("cifar10h_probs", "cifar10h_counts")  # in an .npz of one's own
AGREEMENT = 0.9  # most people name CIFAR-10's own label for 99 % of the images; in another order for 10 %


def load_cifar10h(data_dir: str, *, labels: str = "", test: float = 0.5) -> Rows:
    """Joins CIFAR-10's test images, in their original order, with human label distributions.

    Args:
      data_dir: of CIFAR-10 and of `cifar10h-probs.npy` or `cifar10h-counts.npy`.
      labels: another .npy of probabilities or counts, or an .npz with 'cifar10h_probs' or 'cifar10h_counts'.
      test: fraction of the images drawn to be the test split.

    Returns:
      the images, CIFAR-10's own labels, and soft [images, 10] float32.

    Raises:
      UserError: files are missing or of another kind, or the labels are in another order than the images.
    """
    cifar = load_cifar10(data_dir)
    images, own = cifar.images[cifar.num_train :], cifar.labels[cifar.num_train :]
    file = _find(labels, data_dir)
    soft = _as_distributions(_read(file), (len(images), 10), file)
    agree = (soft.argmax(axis=1) == own).mean()
    if agree < AGREEMENT:
        raise UserError(
            f"data set 'cifar10h': order differs, since {file} and CIFAR-10's test labels agree for {agree:.0%} "
            "of the images; both must be in the original order."
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
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            key = next((key for key in KEYS if key in stored.files), None)
            if key is not None:
                return stored[key]
    except Exception as error:  # NumPy raises many kinds for damaged files
        reason = " ".join(str(error).split())
        raise UserError(f"data set 'cifar10h': {file} is no .npy or .npz of plain arrays: {reason}") from error
    raise UserError(f"data set 'cifar10h': {file} has neither '{KEYS[0]}' nor '{KEYS[1]}'.")


def _as_distributions(values: np.ndarray, shape: tuple[int, int], file: pathlib.Path) -> np.ndarray:
    """Returns probabilities as they are, and counts divided by their sum."""
    where = f"data set 'cifar10h': {file}"
    if values.shape != shape or values.dtype.kind not in "iuf":
        raise UserError(f"{where} must hold numbers {list(shape)}, not {values.dtype} {list(values.shape)}.")
    sums = values.sum(axis=1, keepdims=True, dtype=np.float64)
    counts = bool((values == np.round(values)).all()) and sums.min() > 1
    if not np.isfinite(sums).all() or values.min() < 0 or not (counts or np.allclose(sums, 1, atol=1e-3)):
        raise UserError(f"{where} must hold distributions, not negative and with sum 1, or counts of people.")
    return (values / sums).astype(np.float32)
