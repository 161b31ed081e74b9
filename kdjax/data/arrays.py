"""A data set of the user's own, from one .npz file of arrays."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.bounded import read_npz
from kdjax.data.dataset import Rows, count_classes
from kdjax.errors import UserError, nearest


def load_arrays(
    data_dir: str,
    *,
    path: str,
    num_classes: int | None = None,
    test: float = 0.2,
    labels: str = "labels",
    annotators: Sequence[str] = (),
) -> Rows:
    """Reads an `.npz` file with the arrays images and labels, and optionally soft, test_images, test_labels, test_soft.

    Where several people labelled the training images, the file may have an array of labels for each of them.

    Args:
      data_dir: Directory in which a relative path is looked for, after the current directory.
      path: Path of the file.
      num_classes: Number of classes; by default the number of columns of soft, or else the largest label + 1.
      test: Fraction of the rows that is drawn as the test split, if the file has no test_images.
      labels: Name of the array of the training labels, such as those of one annotator. The labels of test_images are
        always test_labels.
      annotators: Names of arrays of labels whose mean, over their one-hot labels, replaces soft. Test images without
        test_soft then have their one-hot labels.

    Raises:
      UserError: The file is missing or damaged, lacks an array, or its arrays do not fit each other.
    """
    where = f"data set 'arrays' ({path})"
    arrays = _read_npz(path, data_dir, where)
    arrays = _choose_labels(arrays, labels, annotators, where)
    train, num_train = _part(arrays, "", where), None
    images, classes, soft = train
    if "test_images" in arrays:
        held_out, num_train = _part(arrays, "test_", where), len(train.images)
        _check_alike(train, held_out, where)
        images, classes = np.concatenate([images, held_out.images]), np.concatenate([classes, held_out.labels])
        soft = None if soft is None or held_out.soft is None else np.concatenate([soft, held_out.soft])
    if num_classes is None:
        num_classes = soft.shape[-1] if soft is not None and soft.ndim == 2 else count_classes(classes, where)
    return Rows(images, classes, soft, num_classes, num_train, test)


def _choose_labels(
    arrays: Mapping[str, np.ndarray], labels: str, annotators: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    """Returns the arrays with the chosen labels as 'labels', and the annotators' mean, if there are any, as 'soft'."""
    for name in (labels, *annotators):
        if name not in arrays:
            raise UserError(f"{where} has no array '{name}'.{nearest(name, arrays)}")
    chosen = {**arrays, "labels": arrays[labels]}
    if annotators:
        each = [arrays[name] for name in annotators]
        tests = [arrays["test_labels"]] if "test_labels" in arrays else []
        for name, array in zip(annotators, each, strict=True):
            if array.dtype.kind not in "iu" or array.shape != chosen["labels"].shape or array.min(initial=0) < 0:
                raise UserError(f"{where}: '{name}' must hold as many labels, integers from 0 on, as '{labels}'.")
        classes = 1 + max(int(array.max(initial=0)) for array in (chosen["labels"], *each, *tests))
        eye = np.eye(classes, dtype=np.float32)
        chosen["soft"] = np.mean([eye[array] for array in each], axis=0, dtype=np.float32)
        if tests:
            chosen.setdefault("test_soft", eye[tests[0]])
    return chosen


class _Part(NamedTuple):
    """The arrays of the training or the test set; soft may be None."""

    images: np.ndarray
    labels: np.ndarray
    soft: np.ndarray | None


def _read_npz(path: str, data_dir: str, where: str) -> dict[str, np.ndarray]:
    file = next((p for p in (pathlib.Path(path), pathlib.Path(data_dir, path)) if p.is_file()), None)
    if file is None:
        raise UserError(f"{where}: there is no such file in the current directory or in {data_dir}.")
    try:
        return read_npz(file)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where} is not an .npz file of plain arrays: {reason}") from error


def _part(arrays: Mapping[str, np.ndarray], prefix: str, where: str) -> _Part:
    for name in ("images", "labels"):
        if prefix + name not in arrays:
            raise UserError(f"{where} has no array '{prefix}{name}'.{nearest(prefix + name, arrays)}")
    images, labels = arrays[prefix + "images"], arrays[prefix + "labels"]
    if len(np.atleast_1d(images)) != len(np.atleast_1d(labels)):
        shapes = f"{prefix}images {list(images.shape)} and {prefix}labels {list(labels.shape)}"
        raise UserError(f"{where}: {shapes} differ in length.")
    return _Part(images, labels, arrays.get(prefix + "soft"))


def _check_alike(train: _Part, test: _Part, where: str) -> None:
    for name, a, b in zip(_Part._fields, train, test, strict=True):
        if (a is None) != (b is None):
            raise UserError(f"{where} has {name} for only one of training and test; give both or none.")
        if a is not None and (a.shape[1:] != b.shape[1:] or a.dtype != b.dtype):
            kinds = f"{name} {a.dtype} {list(a.shape)} and test_{name} {b.dtype} {list(b.shape)}"
            raise UserError(f"{where}: {kinds} differ.")
