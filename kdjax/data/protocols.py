"""Protocols: what an experiment changes in a data set, such as fewer examples, wrong labels or none.

A protocol is a function `(dataset, *, seed, ...) -> dataset` of its arguments alone. It never changes the images.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.arguments import check_arguments, signature_of
from kdjax.config import SEED
from kdjax.data.dataset import Dataset
from kdjax.data.soft_targets import mixed_targets, soft_labels
from kdjax.data.superclasses import superclasses
from kdjax.errors import UserError, lookup
from kdjax.randomness import philox


def random_split(dataset: Dataset, *, seed: int, train: int, validation: int) -> Dataset:
    """Draws the training and the validation split anew, out of both together and without looking at any label.

    The test split is not changed. Examples that are drawn for neither are left out.

    Args:
      dataset: Any data set.
      seed: Seed with which the examples are drawn; it decides both splits.
      train: Number of training examples, at least 1.
      validation: Number of validation examples; 0 for none.
    """
    pool = np.sort(np.concatenate([dataset.splits[name] for name in ("train", "validation") if name in dataset.splits]))
    if train < 1 or validation < 0 or train + validation > len(pool):
        raise UserError(
            f"config.data.protocols.random_split needs train >= 1 and validation >= 0 with a sum of at most {len(pool)}"
            f" examples, not {train} and {validation}."
        )
    ranked = pool[np.argsort(_words(dataset, seed, "random_split")[pool], kind="stable")]
    drawn = {"train": ranked[:train], "validation": ranked[train : train + validation]}
    splits = {name: np.sort(rows) for name, rows in drawn.items() if len(rows)}
    others = {name: rows for name, rows in dataset.splits.items() if name not in drawn}
    return dataclasses.replace(dataset, splits={**splits, **others})


def subset(dataset: Dataset, *, seed: int, per_class: int) -> Dataset:
    """Keeps `per_class` training examples of every class, drawn with the seed, or all if a class has fewer."""
    if per_class < 1:
        raise UserError(f"config.data.protocols.subset.per_class must be at least 1, not {per_class}.")
    return _keep(dataset, {c: per_class for c in range(dataset.num_classes)}, seed, "subset")


def long_tailed(dataset: Dataset, *, seed: int, imbalance: float, largest: int = 0) -> Dataset:
    """Keeps floor(largest * imbalance^(-i / (classes - 1))) training examples of class i.

    Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples".

    Args:
      dataset: Any data set.
      seed: Seed with which the examples are drawn.
      imbalance: Ratio of the first class's number of examples to the last one's, at least 1; with 100, CIFAR-100 keeps
        10,847 examples.
      largest: Number of examples of the first class; 0 for that of the data set's largest class.
    """
    if imbalance < 1:
        raise UserError(f"config.data.protocols.long_tailed.imbalance must be at least 1, not {imbalance}.")
    counts = np.bincount(_train_labels(dataset), minlength=dataset.num_classes)
    largest, last = largest or int(counts.max()), max(dataset.num_classes - 1, 1)
    wanted = {i: int(largest * (1 / imbalance) ** (i / last)) for i in range(dataset.num_classes)}
    return _keep(dataset, wanted, seed, "long_tailed")


def drop_classes(dataset: Dataset, *, seed: int, classes: Sequence[int]) -> Dataset:
    """Removes classes from the training split. The network still has all classes, and so has the test split."""
    del seed
    gone = sorted(set(classes))
    if not gone or gone[0] < 0 or gone[-1] >= dataset.num_classes or len(gone) >= dataset.num_classes:
        raise UserError(
            f"config.data.protocols.drop_classes.classes must be some, not all, of 0 to {dataset.num_classes - 1}, "
            f"not {list(classes)}."
        )
    train = dataset.splits["train"]
    kept = train[~np.isin(dataset.labels[train], gone)]
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": kept}, unseen=tuple(gone))


def fold(dataset: Dataset, *, seed: int, folds: int, leave_out: int) -> Dataset:
    """Leaves one of several equal parts out of the training split, for teachers that are fitted crosswise.

    With the ensemble 'held_out', a student learns each image from the teacher that was trained without it.

    Args:
      dataset: Any data set.
      seed: Seed with which the training examples are divided.
      folds: Number of parts, at least 2; their sizes differ by one example at most.
      leave_out: Which part is left out, from 0 to folds - 1.
    """
    where = "config.data.protocols.fold"
    if folds < 2:
        raise UserError(f"{where}.folds must be at least 2, not {folds}.")
    if not 0 <= leave_out < folds:
        raise UserError(f"{where}.leave_out must be from 0 to {folds - 1}, not {leave_out}.")
    train = dataset.splits["train"]
    order = np.argsort(_words(dataset, seed, "fold")[train], kind="stable")
    kept = np.sort(train[order[np.arange(len(train)) % folds != leave_out]])
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": kept.astype(np.int32)})


def label_noise(dataset: Dataset, *, seed: int, rate: float, kind: str = "symmetric") -> Dataset:
    """Gives a fraction of every class's training examples a wrong label, the same one in all epochs.

    Args:
      dataset: Any data set.
      seed: Seed with which examples and labels are drawn.
      rate: Fraction of each class, rounded to whole examples.
      kind: 'symmetric' for any other class, equally likely, or 'pairwise' for the next class (the first one
        after the last).
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
    """Keeps the labels of a fraction of every class's training examples; the length of an epoch does not change.

    Args:
      dataset: Any data set.
      seed: Seed with which the labelled examples are drawn. With the same seed, a larger fraction contains the examples
        of a smaller one.
      fraction: Fraction of each class, in (0, 1]; at least one example stays labelled.
      unlabelled: What happens to the other examples: 'keep' leaves their images for distillation without labels, 'drop'
        removes them.
      share: Fraction of every batch that is labelled, in (0, 1], if the other examples are kept.
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
        soft[np.setdiff1d(train, kept)] = 1 / dataset.num_classes  # a distribution would give the label away
    return dataclasses.replace(
        dataset,
        labels=labels,
        soft=soft,
        splits=splits,
        labelled_share=share,
        epoch_examples=dataset.epoch_examples or len(train),
    )


# Name -> protocol. They are applied in this order unless a config sets their `order`.
PROTOCOLS: dict[str, Callable[..., Dataset]] = {
    "random_split": random_split,
    "superclasses": superclasses,
    "subset": subset,
    "long_tailed": long_tailed,
    "drop_classes": drop_classes,
    "fold": fold,
    "label_noise": label_noise,
    "soft_labels": soft_labels,
    "mixed_targets": mixed_targets,
    "labelled_fraction": labelled_fraction,
}


def apply_protocols(dataset: Dataset, protocols: Mapping[str, Mapping], split_seed: int) -> Dataset:
    """Applies `config.data.protocols`.

    Args:
      dataset: Data set with its splits.
      protocols: Name of each protocol -> its arguments. Two more arguments are allowed: `order`, a number by which the
        protocols are sorted in place of their rank in PROTOCOLS, and `seed`, which replaces the split seed.
      split_seed: config.data.split_seed.

    Raises:
      UserError: A protocol or an argument is unknown, or no training example is left.
    """
    ranks = {name: rank for rank, name in enumerate(PROTOCOLS)}
    places = {name: protocols[name].get("order", ranks.get(name, 99)) for name in protocols}
    for name, place in places.items():
        if not isinstance(place, int | float):
            raise UserError(f"config.data.protocols.{name}.order must be a number, not {place!r}.")
    for name in sorted(protocols, key=lambda name: (places[name], name)):
        arguments = {field: value for field, value in protocols[name].items() if field != "order"}
        function = lookup(PROTOCOLS, name, "protocol")
        takes = signature_of(function, leading=1)
        where = {"field": f"config.data.protocols.{name}", "owner": "the protocol", "also": ("order",)}
        check_arguments(takes, {"seed": split_seed, **arguments}, **where)
        if not SEED.holds(seed := arguments.get("seed", split_seed)):
            raise UserError(f"config.data.protocols.{name}.seed must be {SEED.words}, not {seed!r}.")
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
    """Returns one line that says what a protocol did, from its record in `Dataset.protocols`."""
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
    """Returns random words [rows]."""
    return philox(seed, stream).random_raw(len(dataset.labels))


def _ranked(dataset: Dataset, label: int, words: np.ndarray) -> np.ndarray:
    """Returns the training rows of a class in random order."""
    train = dataset.splits["train"]
    rows = train[dataset.labels[train] == label]
    return rows[np.argsort(words[rows], kind="stable")]


def _keep(dataset: Dataset, wanted: Mapping[int, int], seed: int, stream: str) -> Dataset:
    """Keeps the wanted number of training examples of each class."""
    words = _words(dataset, seed, stream)
    kept = np.sort(np.concatenate([_ranked(dataset, c, words)[:count] for c, count in wanted.items()]))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": kept.astype(np.int32)})
