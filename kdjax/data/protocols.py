"""What an experiment does to a data set: fewer, unequal, unlabelled, wrongly labelled or regrouped training examples.

A protocol is `(dataset, *, seed, ...) -> dataset`, a function of its arguments alone; the images stay as they are.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.arguments import check_arguments, signature_of
from kdjax.data.dataset import Dataset
from kdjax.errors import UserError, lookup, nearest
from kdjax.randomness import philox

# CIFAR-100's 20 coarse classes, by fine class in alphabetical order (Krizhevsky, 2009).
CIFAR100_COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip
MAPPINGS = {"cifar2x5": (0,) * 5 + (1,) * 5, "cifar100_coarse": CIFAR100_COARSE}


def superclasses(dataset: Dataset, *, seed: int, mapping: str | Sequence[int]) -> Dataset:
    """Regroups classes, in every split.

    Args:
      dataset: any.
      seed: not used.
      mapping: the new class of each old one, in [0, new classes): a list, 'cifar2x5' (binary; Müller et al. 2020:
        classes 0-4 against 5-9), 'cifar100_coarse' (20 classes), or a file with such a list in JSON or a number a line.

    Raises:
      UserError: a mapping of another length, or one that leaves a new class empty.
    """
    del seed
    new = np.asarray(_mapping(mapping))
    where = "config.data.protocols.superclasses.mapping"
    if new.shape != (dataset.num_classes,) or new.dtype.kind not in "iu":
        raise UserError(
            f"{where} must be {dataset.num_classes} integers, one a class, not {list(new.shape)} {new.dtype}."
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


def _mapping(mapping: str | Sequence[int]) -> Any:
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
        raise UserError(f"{path} must hold the new class of each old one, a number a line: {error}.") from error


def _joined(names: tuple[str, ...] | None, new: np.ndarray, classes: int) -> tuple[str, ...] | None:
    """'cat+dog' for a new class of two."""
    if names is None:
        return None
    return tuple("+".join(name for name, group in zip(names, new, strict=True) if group == k) for k in range(classes))


def subset(dataset: Dataset, *, seed: int, per_class: int) -> Dataset:
    """Keeps `per_class` training examples of every class, drawn by the seed; all where a class has fewer."""
    if per_class < 1:
        raise UserError(f"config.data.protocols.subset.per_class must be at least 1, not {per_class}.")
    return _keep(dataset, {c: per_class for c in range(dataset.num_classes)}, seed, "subset")


def long_tailed(dataset: Dataset, *, seed: int, imbalance: float, largest: int = 0) -> Dataset:
    """Keeps floor(largest * imbalance^(-i / (classes - 1))) training examples of class i (Cui et al. 2019).

    Args:
      dataset: any.
      seed: that the kept ones are drawn by.
      imbalance: of the first class over the last, at least 1; 100 gives 10,847 examples of CIFAR-100.
      largest: of the first class; 0 for what the largest class has.
    """
    if imbalance < 1:
        raise UserError(f"config.data.protocols.long_tailed.imbalance must be at least 1, not {imbalance}.")
    counts = np.bincount(_train_labels(dataset), minlength=dataset.num_classes)
    largest, last = largest or int(counts.max()), max(dataset.num_classes - 1, 1)
    wanted = {i: int(largest * (1 / imbalance) ** (i / last)) for i in range(dataset.num_classes)}
    return _keep(dataset, wanted, seed, "long_tailed")


def drop_classes(dataset: Dataset, *, seed: int, classes: Sequence[int]) -> Dataset:
    """Takes classes out of every training batch; the network keeps the full class count and the test all classes."""
    del seed
    gone = sorted(set(classes))
    if not gone or gone[0] < 0 or gone[-1] >= dataset.num_classes or len(gone) >= dataset.num_classes:
        raise UserError(
            f"config.data.protocols.drop_classes.classes must name some, not all, of 0 to {dataset.num_classes - 1}, "
            f"not {list(classes)}."
        )
    train = dataset.splits["train"]
    kept = train[~np.isin(dataset.labels[train], gone)]
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": kept}, unseen=tuple(gone))


def label_noise(dataset: Dataset, *, seed: int, rate: float, kind: str = "symmetric") -> Dataset:
    """Gives a part of every class's training examples another label, for good.

    Args:
      dataset: any.
      seed: that examples and labels are drawn by.
      rate: part of each class, rounded to whole examples.
      kind: 'symmetric': any other class, equally likely; 'pairwise': the next class, after the last the first.
    """
    if not 0 <= rate <= 1 or kind not in ("symmetric", "pairwise"):
        raise UserError(
            f"config.data.protocols.label_noise needs a rate in [0, 1] and the kind 'symmetric' or 'pairwise', "
            f"not {rate} and '{kind}'."
        )
    labels, classes = dataset.labels.copy(), dataset.num_classes
    words = _words(dataset, seed, "label_noise")
    for c in range(classes):
        rows = _ranked(dataset, c, words)
        wrong = rows[: int(rate * len(rows) + 0.5)]
        step = words[wrong] % np.uint64(classes - 1) + np.uint64(1) if kind == "symmetric" else np.uint64(1)
        labels[wrong] = (c + step.astype(np.int64)) % classes
    return dataclasses.replace(dataset, labels=labels)


def labelled_fraction(
    dataset: Dataset, *, seed: int, fraction: float, unlabelled: str = "keep", share: float = 0.5
) -> Dataset:
    """Keeps the labels of a part of every class's training examples; an epoch stays as long as with all labels.

    Args:
      dataset: any.
      seed: that the labelled ones are drawn by: smaller fractions are parts of larger ones.
      fraction: of each class, in (0, 1], at least one example.
      unlabelled: 'keep': the others stay as images without labels, for distillation; 'drop': they leave.
      share: part of every batch that is labelled, in (0, 1], where the others are kept.
    """
    where = "config.data.protocols.labelled_fraction"
    if not 0 < fraction <= 1 or not 0 < share <= 1:
        raise UserError(f"{where}: fraction and share must be in (0, 1], not {fraction} and {share}.")
    if unlabelled not in ("keep", "drop"):
        raise UserError(f"{where}.unlabelled must be 'keep' or 'drop', not '{unlabelled}'.")
    words, train = _words(dataset, seed, "labelled_fraction"), dataset.splits["train"]
    parts = [_ranked(dataset, c, words) for c in range(dataset.num_classes)]
    kept = np.sort(np.concatenate([rows[: max(1, int(fraction * len(rows) + 0.5))] for rows in parts]))
    labels = dataset.labels.copy()
    labels[np.setdiff1d(train, kept)] = -1
    splits = {**dataset.splits, "train": kept.astype(np.int32)} if unlabelled == "drop" else dataset.splits
    soft = dataset.soft
    if soft is not None and unlabelled == "keep" and len(kept) < len(train):
        soft = soft.copy()
        soft[np.setdiff1d(train, kept)] = 1 / dataset.num_classes  # a distribution is a label too
    return dataclasses.replace(
        dataset,
        labels=labels,
        soft=soft,
        splits=splits,
        labelled_share=share,
        epoch_examples=dataset.epoch_examples or len(train),
    )


def soft_labels(dataset: Dataset, *, seed: int, path: str, key: str = "", split: str = "train") -> Dataset:
    """Puts distributions from a file in the place of those of a split: human labels, another model's outputs.

    Args:
      dataset: any; where it has no distributions, examples of other splits get their one-hot labels.
      seed: not used.
      path: of an .npy or .npz with [examples of the split, classes], in the order of the split's rows, or
        [rows of the whole set, classes].
      key: of the array in an .npz; '' for its only one.
      split: 'train', 'validation' or 'test'.

    Raises:
      UserError: no such file, array or split, or an array of another shape or without distributions.
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
        raise UserError(f"{where}: every row of {path} must be a distribution: not negative, with sum 1.")
    soft = dataset.soft
    if soft is None:
        soft = np.eye(dataset.num_classes, dtype=np.float32)[dataset.labels]
    soft = soft.copy()
    soft[rows] = values
    return dataclasses.replace(dataset, soft=soft)


def mixed_targets(dataset: Dataset, *, seed: int, epsilon: float, other: str = "labels") -> Dataset:
    """Moves the distributions of the training split away from p*, to epsilon * other + (1 - epsilon) * p*.

    Students see them with config.data.targets = 'soft'; validation and test keep p* (Hamidi et al., ECCV 2024).

    Args:
      dataset: with distributions.
      seed: not used.
      epsilon: in [0, 1].
      other: 'labels': the one-hot labels, as in the paper; 'uniform': 1 / classes, which is as far from p* at some
        epsilon, and says nothing wrong of any example.

    Raises:
      UserError: an argument out of range, or data without distributions.
    """
    del seed
    where = "config.data.protocols.mixed_targets"
    if not 0 <= epsilon <= 1 or other not in ("labels", "uniform"):
        raise UserError(f"{where} needs epsilon in [0, 1] and 'labels' or 'uniform', not {epsilon} and '{other}'.")
    if dataset.soft is None:
        raise UserError(
            f"{where}: data set '{dataset.name}' has no distributions; gaussian and cifar10h have, and the protocol "
            "soft_labels brings some."
        )
    soft, rows = dataset.soft.copy(), dataset.splits["train"]
    rows = rows[dataset.labelled[rows]]
    one_hot = np.eye(dataset.num_classes, dtype=soft.dtype)[dataset.labels[rows]]
    target = one_hot if other == "labels" else np.full_like(one_hot, 1 / dataset.num_classes)
    soft[rows] = epsilon * target + (1 - epsilon) * soft[rows]
    return dataclasses.replace(dataset, soft=soft)


def _read_array(path: str, key: str, where: str) -> np.ndarray:
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "there is no such file" if not pathlib.Path(path).is_file() else str(error).splitlines()[0]
        raise UserError(f"{where}.path '{path}' cannot be read: {reason}.") from error
    if isinstance(stored, np.ndarray):
        return stored
    with stored:
        names = stored.files
        if key not in names and (key or len(names) != 1):
            raise UserError(f"{where}.key '{key}': {path} has {', '.join(names)}; name one.")
        return stored[key or names[0]]


# Name -> protocol; they apply in this order unless a config says `order`.
PROTOCOLS: dict[str, Callable[..., Dataset]] = {
    "superclasses": superclasses,
    "subset": subset,
    "long_tailed": long_tailed,
    "drop_classes": drop_classes,
    "label_noise": label_noise,
    "soft_labels": soft_labels,
    "mixed_targets": mixed_targets,
    "labelled_fraction": labelled_fraction,
}


def apply_protocols(dataset: Dataset, protocols: Mapping[str, Mapping], split_seed: int) -> Dataset:
    """Applies `config.data.protocols`.

    Args:
      dataset: split.
      protocols: name -> arguments; `order`, a number, moves one before (lower) or after others, `seed` replaces the
        split seed.
      split_seed: of the data.

    Raises:
      UserError: an unknown protocol or argument, or nothing left to train on.
    """
    ranks = {name: rank for rank, name in enumerate(PROTOCOLS)}
    for name in sorted(protocols, key=lambda name: (protocols[name].get("order", ranks.get(name, 99)), name)):
        arguments = {field: value for field, value in protocols[name].items() if field != "order"}
        function = lookup(PROTOCOLS, name, "protocol")
        takes = signature_of(function, leading=1)
        where = {"field": f"config.data.protocols.{name}", "owner": "the protocol", "also": ("order",)}
        check_arguments(takes, {"seed": split_seed, **arguments}, **where)
        dataset = function(dataset, **{"seed": split_seed, **arguments})
        if not len(dataset.splits["train"]):
            raise UserError(f"config.data.protocols.{name} leaves no training example.")
        record = {"protocol": name, "arguments": arguments, **_counts(dataset)}
        dataset = dataclasses.replace(dataset, protocols=(*dataset.protocols, record))
    return dataset


def _counts(dataset: Dataset) -> dict[str, Any]:
    labels = _train_labels(dataset)
    counts = np.bincount(labels[labels >= 0], minlength=dataset.num_classes)
    return {"train": len(labels), "labelled": int(counts.sum()), "of_class": counts.tolist()}


def describe(record: Mapping) -> str:
    """Returns in one line what a protocol did, from its record in `Dataset.protocols`."""
    counts = record["of_class"]
    said = ", ".join(f"{name} {value}" for name, value in record["arguments"].items())
    shown = " ".join(map(str, counts))
    if len(counts) > 20:
        shown = f"{' '.join(map(str, counts[:5]))} ... {' '.join(map(str, counts[-3:]))}"
    return (
        f"{record['protocol']} ({said}): {record['train']} training examples, {record['labelled']} labelled; "
        f"per class: {shown}"
    )


def _train_labels(dataset: Dataset) -> np.ndarray:
    return dataset.labels[dataset.splits["train"]]


def _words(dataset: Dataset, seed: int, stream: str) -> np.ndarray:
    """[rows] random words."""
    return philox(seed, stream).random_raw(len(dataset.labels))


def _ranked(dataset: Dataset, label: int, words: np.ndarray) -> np.ndarray:
    """The training rows of a class in random order."""
    train = dataset.splits["train"]
    rows = train[dataset.labels[train] == label]
    return rows[np.argsort(words[rows], kind="stable")]


def _keep(dataset: Dataset, wanted: Mapping[int, int], seed: int, stream: str) -> Dataset:
    """Keeps so many training examples of each class."""
    words = _words(dataset, seed, stream)
    kept = np.sort(np.concatenate([_ranked(dataset, c, words)[:count] for c, count in wanted.items()]))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": kept.astype(np.int32)})
