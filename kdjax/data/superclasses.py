"""The protocol that regroups classes into coarser ones."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from kdjax.data.dataset import Dataset
from kdjax.errors import UserError, nearest

# The coarse class of each of CIFAR-100's fine classes, in alphabetical order of the fine classes (Krizhevsky, 2009).
CIFAR100_COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip
MAPPINGS = {"cifar2x5": (0,) * 5 + (1,) * 5, "cifar100_coarse": CIFAR100_COARSE}


def superclasses(dataset: Dataset, *, seed: int, mapping: str | Sequence[int]) -> Dataset:
    """Regroups the classes of all splits.

    Args:
      dataset: Any data set.
      seed: Not used.
      mapping: The new class of each old class, from 0 to the number of new classes - 1: a list; 'cifar2x5' (two
        classes: 0-4 and 5-9; Müller, Kornblith & Hinton 2020, "Subclass Distillation"); 'cifar100_coarse' (CIFAR-100's
        20 coarse classes); or the path of a file with a list in JSON or one number per line.

    Raises:
      UserError: The mapping has another length than there are classes, or a new class would be empty.
    """
    del seed
    new = np.asarray(_mapping(mapping))
    where = "config.data.protocols.superclasses.mapping"
    if new.shape != (dataset.num_classes,) or new.dtype.kind not in "iu":
        raise UserError(
            f"{where} must be {dataset.num_classes} integers, one per class, not {list(new.shape)} {new.dtype}."
        )
    classes = int(new.max()) + 1
    if classes < 2 or not np.array_equal(np.unique(new), np.arange(classes)):
        raise UserError(f"{where} must use every number from 0 to {classes - 1}, at least 2 of them.")
    soft = None
    if dataset.soft is not None:
        soft = dataset.soft @ np.eye(classes, dtype=dataset.soft.dtype)[new]
    labels = np.where(dataset.labels >= 0, new[dataset.labels], -1).astype(np.int32)
    names = _joined(dataset.class_names, new, classes)
    return dataclasses.replace(dataset, labels=labels, soft=soft, num_classes=classes, class_names=names)


def _mapping(mapping: str | Sequence[int]) -> Sequence[int]:
    if not isinstance(mapping, str):
        return list(mapping)
    if mapping in MAPPINGS:
        return MAPPINGS[mapping]
    path = pathlib.Path(mapping)
    if not path.is_file():
        hint = nearest(mapping, MAPPINGS)
        raise UserError(f"config.data.protocols.superclasses.mapping: there is no file '{mapping}'.{hint}")
    try:
        text = path.read_text()
        return json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except ValueError as error:
        raise UserError(f"{path} must hold the new class of each old class, one per line: {error}.") from error


def _joined(names: tuple[str, ...] | None, new: np.ndarray, classes: int) -> tuple[str, ...] | None:
    """Returns a name such as 'cat+dog' for each new class."""
    if names is None:
        return None
    return tuple("+".join(name for name, group in zip(names, new, strict=True) if group == k) for k in range(classes))
