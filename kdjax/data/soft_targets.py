"""The protocols that change target distributions."""

import dataclasses
import pathlib

import numpy as np

from kdjax.bounded import read_arrays
from kdjax.data.dataset import Dataset
from kdjax.errors import UserError, nearest


def soft_labels(dataset: Dataset, *, seed: int, path: str, key: str = "", split: str = "train") -> Dataset:
    """Replaces the distributions of one split with those of a file, such as human labels or another model's outputs.

    Args:
      dataset: Any data set. If it has no distributions, examples of the other splits get their one-hot labels.
      seed: Not used.
      path: Path of an .npy or .npz file with an array [examples of the split, classes], in the order of the split's
        rows, or [rows of the whole set, classes].
      key: Name of the array in an .npz file; '' if it has only one.
      split: 'train', 'validation' or 'test'.

    Raises:
      UserError: The file, the array or the split is missing, or the array has another shape or rows that are not
        distributions.
    """
    del seed
    where = "config.data.protocols.soft_labels"
    if split not in dataset.splits:
        raise UserError(f"{where}.split: the data has no split '{split}'.{nearest(split, dataset.splits)}")
    values, rows = _read_array(path, key, where), dataset.splits[split]
    if values.shape == (len(dataset.labels), dataset.num_classes):
        values = values[rows]
    if values.shape != (len(rows), dataset.num_classes) or values.dtype.kind != "f":
        raise UserError(
            f"{where}: {path} must have floats [{len(rows)}, {dataset.num_classes}] (split '{split}') or "
            f"[{len(dataset.labels)}, {dataset.num_classes}], not {values.dtype} {list(values.shape)}."
        )
    if not (values >= 0).all() or not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise UserError(f"{where}: every row of {path} must be a distribution: no negative values, sum 1.")
    soft = dataset.soft
    if soft is None:
        soft = np.eye(dataset.num_classes, dtype=np.float32)[dataset.labels]
    soft = soft.copy()
    soft[rows] = values
    return dataclasses.replace(dataset, soft=soft)


def _read_array(path: str, key: str, where: str) -> np.ndarray:
    try:
        stored = read_arrays(path)
    except Exception as error:  # damaged bytes may raise any type
        reason = "there is no such file" if not pathlib.Path(path).exists() else " ".join(str(error).split())
        raise UserError(f"{where}.path '{path}' cannot be read: {reason}.") from error
    if isinstance(stored, np.ndarray):
        return stored
    names = list(stored)
    if key not in names and (key or len(names) != 1):
        raise UserError(f"{where}.key '{key}': {path} has the arrays {', '.join(names)}; set key to one of them.")
    return stored[key or names[0]]


def mixed_targets(dataset: Dataset, *, seed: int, epsilon: float, other: str = "labels") -> Dataset:
    """Moves the distributions of the training split away from p*, to epsilon * other + (1 - epsilon) * p*.

    With config.data.targets = 'soft' students learn from them; validation and test keep p*. Hamidi et al. (2024), "How
    to Train the Teacher Model for Effective Knowledge Distillation".

    Args:
      dataset: A data set with distributions.
      seed: Not used.
      epsilon: Weight of `other`, in [0, 1].
      other: 'labels' for the one-hot labels, as in the paper, or 'uniform' for 1 / classes, which can be as far from p*
        without a wrong label for any example.

    Raises:
      UserError: An argument is out of range, or the data has no distributions.
    """
    del seed
    where = "config.data.protocols.mixed_targets"
    if not 0 <= epsilon <= 1 or other not in ("labels", "uniform"):
        raise UserError(f"{where} needs epsilon in [0, 1] and 'labels' or 'uniform', not {epsilon} and '{other}'.")
    if dataset.soft is None:
        raise UserError(
            f"{where}: data set '{dataset.name}' has no distributions; use gaussian or cifar10h, or add distributions "
            "with the protocol soft_labels."
        )
    soft, rows = dataset.soft.copy(), dataset.splits["train"]
    rows = rows[dataset.labelled[rows]]
    one_hot = np.eye(dataset.num_classes, dtype=soft.dtype)[dataset.labels[rows]]
    target = one_hot if other == "labels" else np.full_like(one_hot, 1 / dataset.num_classes)
    soft[rows] = epsilon * target + (1 - epsilon) * soft[rows]
    return dataclasses.replace(dataset, soft=soft)
