"""Protocols: exact counts, changes to the training split only, the same result for a seed, and refused arguments."""

import dataclasses
import json

import numpy as np
import pytest

from kdjax.data import Dataset, Order, Stored, make_order
from kdjax.data.protocols import PROTOCOLS, apply_protocols, describe
from kdjax.data.superclasses import CIFAR100_COARSE
from kdjax.errors import UserError


def make_dataset(classes=10, per_class=50, test_per_class=4, soft=False, names=None) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(np.repeat(np.arange(classes), n)) for n in (per_class, test_per_class)])
    train = np.arange(classes * per_class, dtype=np.int32)
    test = np.arange(len(train), len(labels), dtype=np.int32)
    distributions = rng.dirichlet(np.ones(classes), len(labels)).astype(np.float32) if soft else None
    stored = Stored(1 / 255, (0.5,), (0.5,), ("none", "crop", "crop_flip"))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    splits = {"train": train, "test": test}
    return Dataset("made", images, labels.astype(np.int32), distributions, classes, splits, stored, names)


def counts(dataset, split="train"):
    labels = dataset.labels[dataset.splits[split]]
    return np.bincount(labels[labels >= 0], minlength=dataset.num_classes)


def apply(dataset, seed=0, **protocols):
    return apply_protocols(dataset, protocols, seed)


@pytest.mark.parametrize(("imbalance", "total"), [(10, 19573), (50, 12608), (100, 10847)])
def test_a_long_tail_of_cifar100_has_the_papers_totals(imbalance, total):
    tail = apply(make_dataset(100, 500), long_tailed={"imbalance": imbalance})
    found = counts(tail)
    assert found.sum() == total and found[0] == 500 and found[-1] == 500 // imbalance
    if imbalance == 100:
        assert found[:5].tolist() == [500, 477, 455, 434, 415]
    assert (np.diff(found) <= 0).all() and (counts(tail, "test") == 4).all()


def test_a_random_split_looks_at_no_label():
    data = make_dataset(4, 50)
    drawn = apply(data, seed=3, random_split={"train": 120, "validation": 30})
    rows = np.concatenate([drawn.splits["train"], drawn.splits["validation"]])
    assert len(set(rows.tolist())) == 150 and rows.max() < 200 and (np.diff(drawn.splits["train"]) > 0).all()
    np.testing.assert_array_equal(drawn.splits["test"], data.splits["test"])
    other = dataclasses.replace(data, labels=np.roll(data.labels, 7))
    for name, found in apply(other, seed=3, random_split={"train": 120, "validation": 30}).splits.items():
        np.testing.assert_array_equal(found, drawn.splits[name])
    # What is drawn does not depend on the split that was made before.
    again = apply(drawn, seed=4, random_split={"train": 150, "validation": 0})
    assert set(again.splits) == {"train", "test"} and set(again.splits["train"]) == set(rows.tolist())
    assert not np.array_equal(apply(data, seed=4, random_split={"train": 120, "validation": 30}).splits["train"],
                              drawn.splits["train"])  # fmt: skip
    with pytest.raises(UserError, match="sum of at most 200 examples, not 190 and 20"):
        apply(data, random_split={"train": 190, "validation": 20})


def test_a_long_tail_in_general():
    tail = apply(make_dataset(5, 40), long_tailed={"imbalance": 4.0, "largest": 20})
    assert counts(tail).tolist() == [int(20 * 0.25 ** (i / 4)) for i in range(5)]
    np.testing.assert_array_equal(counts(apply(make_dataset(5, 40), long_tailed={"imbalance": 1})), 40)


def test_a_labelled_fraction_contains_smaller_ones():
    data = make_dataset()
    fractions = {p: apply(data, labelled_fraction={"fraction": p}) for p in (0.02, 0.1, 0.5, 1.0)}
    for fraction, partly in fractions.items():
        np.testing.assert_array_equal(counts(partly), max(1, round(50 * fraction)))
        np.testing.assert_array_equal(partly.splits["train"], data.splits["train"])
        known = partly.labelled
        np.testing.assert_array_equal(partly.labels[known], data.labels[known])
        assert known[data.splits["test"]].all()
    few, more = (set(fractions[p].labelled_train.tolist()) for p in (0.1, 0.5))
    assert few < more
    dropped = apply(data, labelled_fraction={"fraction": 0.1, "unlabelled": "drop"})
    np.testing.assert_array_equal(dropped.splits["train"], fractions[0.1].labelled_train)
    assert make_order(dropped, 20, 0).steps == make_order(fractions[0.1], 20, 0).steps == make_order(data, 20, 0).steps


def test_an_example_without_a_label_has_no_distribution_either():
    partly = apply(make_dataset(soft=True), labelled_fraction={"fraction": 0.2})
    hidden = ~partly.labelled
    assert hidden.sum() == 400 and (partly.soft[hidden] == np.float32(0.1)).all()


def test_superclasses_regroup_labels_distributions_and_names():
    data = make_dataset(soft=True, names=tuple("abcdefghij"))
    binary = apply(data, superclasses={"mapping": "cifar2x5"})
    assert binary.num_classes == 2 and binary.class_names == ("a+b+c+d+e", "f+g+h+i+j")
    np.testing.assert_array_equal(binary.labels, data.labels // 5)
    np.testing.assert_allclose(binary.soft[:, 0], data.soft[:, :5].sum(axis=1), rtol=1e-5)
    listed = apply(data, superclasses={"mapping": [0, 1] * 5})
    np.testing.assert_array_equal(listed.labels, data.labels % 2)


def test_a_mapping_may_come_from_a_file(tmp_path):
    data, mapping = make_dataset(), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for name, text in (("a.json", json.dumps(mapping)), ("b.txt", "\n".join(map(str, mapping)))):
        (tmp_path / name).write_text(text)
        found = apply(data, superclasses={"mapping": str(tmp_path / name)})
        np.testing.assert_array_equal(found.labels, np.array(mapping)[data.labels])
    (tmp_path / "c.txt").write_text("a b")
    with pytest.raises(UserError, match="one per line"):
        apply(data, superclasses={"mapping": str(tmp_path / "c.txt")})


def test_cifar100s_coarse_classes_are_five_each():
    assert (np.bincount(CIFAR100_COARSE) == 5).all() and len(CIFAR100_COARSE) == 100
    aquatic_mammals, trees = (4, 30, 55, 72, 95), (47, 52, 56, 59, 96)
    assert {CIFAR100_COARSE[i] for i in aquatic_mammals} == {0} and {CIFAR100_COARSE[i] for i in trees} == {17}


def test_mixed_targets_lie_between_labels_and_distributions():
    data = make_dataset(soft=True)
    train, test = data.splits["train"], data.splits["test"]
    one_hot = np.eye(10)[data.labels]
    for epsilon in (0.0, 0.3, 1.0):
        mixed = apply(data, mixed_targets={"epsilon": epsilon})
        expected = epsilon * one_hot + (1 - epsilon) * data.soft
        np.testing.assert_allclose(mixed.soft[train], expected[train], atol=1e-6)
        np.testing.assert_array_equal(mixed.soft[test], data.soft[test])
        np.testing.assert_array_equal(mixed.labels, data.labels)
    uniform = apply(data, mixed_targets={"epsilon": 0.5, "other": "uniform"})
    np.testing.assert_allclose(uniform.soft[train], 0.05 + 0.5 * data.soft[train], atol=1e-6)
    with pytest.raises(UserError, match="has no distributions"):
        apply(make_dataset(), mixed_targets={"epsilon": 0.5})


def test_dropped_classes_leave_training_and_nothing_else():
    data = make_dataset()
    dropped = apply(data, drop_classes={"classes": [3, 7]})
    found = counts(dropped)
    assert found[[3, 7]].tolist() == [0, 0] and found.sum() == 400 and dropped.num_classes == 10
    np.testing.assert_array_equal(counts(dropped, "test"), 4)
    assert dropped.unseen == (3, 7)


def test_label_noise_changes_an_exact_number_of_labels_and_never_to_the_own_class():
    data = make_dataset(10, 200)
    train, test = data.splits["train"], data.splits["test"]
    noisy = apply(data, label_noise={"rate": 0.4})
    flipped = data.labels[train] != noisy.labels[train]
    np.testing.assert_array_equal(np.bincount(data.labels[train][flipped]), 80)
    np.testing.assert_array_equal(data.labels[test], noisy.labels[test])
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (data.labels[train][flipped], noisy.labels[train][flipped]), 1)
    assert (np.diag(confusion) == 0).all() and (confusion + 99 * np.eye(10) > 0).all()
    pairs = apply(data, label_noise={"rate": 0.25, "kind": "pairwise"})
    moved = data.labels[train] != pairs.labels[train]
    np.testing.assert_array_equal(pairs.labels[train][moved], (data.labels[train][moved] + 1) % 10)
    assert moved.sum() == 500


def test_a_subset_has_the_number_of_examples_of_each_class():
    np.testing.assert_array_equal(counts(apply(make_dataset(), subset={"per_class": 7})), 7)
    np.testing.assert_array_equal(counts(apply(make_dataset(), subset={"per_class": 700})), 50)


def test_soft_labels_come_from_a_file_for_one_split_or_all_rows(tmp_path):
    data, path = make_dataset(), str(tmp_path / "soft.npz")
    given = np.random.default_rng(1).dirichlet(np.ones(10), len(data.labels)).astype(np.float32)
    np.savez(path, a=given, b=given[data.splits["test"]])
    train = apply(data, soft_labels={"path": path, "key": "a"})
    np.testing.assert_array_equal(train.soft[data.splits["train"]], given[data.splits["train"]])
    rest = data.splits["test"]
    np.testing.assert_array_equal(train.soft[rest], np.eye(10)[data.labels[rest]])
    test = apply(data, soft_labels={"path": path, "key": "b", "split": "test"})
    np.testing.assert_array_equal(test.soft[rest], given[rest])
    for arguments, words in (
        ({"path": path}, "has the arrays a, b; set key to one of them"),
        ({"path": "nowhere.npy"}, "there is no such file"),
        ({"path": path, "key": "b"}, r"must have floats \[500, 10\]"),
        ({"path": path, "key": "a", "split": "dev"}, "no split 'dev'"),
    ):
        with pytest.raises(UserError, match=words):
            apply(data, soft_labels=arguments)


ARGUMENTS = {
    "random_split": {"train": 300, "validation": 0},
    "long_tailed": {"imbalance": 5.0},
    "labelled_fraction": {"fraction": 0.3},
    "superclasses": {"mapping": "cifar2x5"},
    "drop_classes": {"classes": [1]},
    "fold": {"folds": 3, "leave_out": 1},
    "label_noise": {"rate": 0.3},
    "subset": {"per_class": 9},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_protocol_is_a_function_of_its_seed_and_does_not_change_its_input(name):
    data = make_dataset()
    before = data.labels.copy()
    a, again = (apply(data, 5, **{name: ARGUMENTS[name]}) for _ in range(2))
    np.testing.assert_array_equal(a.labels, again.labels)
    np.testing.assert_array_equal(a.splits["train"], again.splits["train"])
    np.testing.assert_array_equal(data.labels, before)
    other = apply(data, 6, **{name: ARGUMENTS[name]})
    same = np.array_equal(a.labels, other.labels) and np.array_equal(a.splits["train"], other.splits["train"])
    assert same == (name in ("superclasses", "drop_classes"))
    fixed = apply(data, 6, **{name: {**ARGUMENTS[name], "seed": 5}})
    np.testing.assert_array_equal(fixed.labels, a.labels)
    assert a.images is data.images and set(PROTOCOLS) - set(ARGUMENTS) == {"soft_labels", "mixed_targets"}


def test_every_training_example_is_left_out_of_one_fold_and_no_other():
    data = make_dataset()
    train = data.splits["train"]
    left_out = [np.setdiff1d(train, apply(data, fold={"folds": 3, "leave_out": i}).splits["train"]) for i in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(left_out)), train)
    assert max(map(len, left_out)) - min(map(len, left_out)) <= 1


def test_protocols_are_applied_in_the_order_of_the_table_or_of_the_config():
    data = make_dataset()
    both = {"subset": {"per_class": 10}, "superclasses": {"mapping": "cifar2x5"}}
    np.testing.assert_array_equal(counts(apply(data, **both)), [10, 10])  # classes are regrouped first
    both["subset"]["order"] = -1
    np.testing.assert_array_equal(counts(apply(data, **both)), [50, 50])
    records = apply(data, **both).protocols
    assert [record["protocol"] for record in records] == ["subset", "superclasses"]
    assert records[0]["of_class"] == [10] * 10 and records[1]["train"] == 100
    assert describe(records[0]) == (
        "subset (per_class 10): 100 training examples, 100 labelled; per class: 10 10 10 10 10 10 10 10 10 10"
    )


@pytest.mark.parametrize(
    ("protocols", "words"),
    [
        ({"longtailed": {"imbalance": 3}}, "unknown protocol 'longtailed'. Did you mean 'long_tailed'"),
        ({"long_tailed": {"imbalence": 3}}, "takes no 'imbalence'. Did you mean 'imbalance'"),
        ({"long_tailed": {}}, "needs 'imbalance'; set it, as by --config.data.protocols.long_tailed.imbalance="),
        ({"long_tailed": {"imbalance": 0.5}}, "at least 1"),
        ({"drop_classes": {"classes": list(range(10))}}, "some, not all"),
        ({"drop_classes": {"classes": [10]}}, "some, not all"),
        ({"fold": {"folds": 1, "leave_out": 0}}, "folds must be at least 2"),
        ({"fold": {"folds": 3, "leave_out": 3}}, "leave_out must be from 0 to 2, not 3"),
        ({"label_noise": {"rate": 0.5, "kind": "odd"}}, "'symmetric' or 'pairwise'"),
        ({"labelled_fraction": {"fraction": 0}}, r"in \(0, 1\]"),
        ({"superclasses": {"mapping": [0, 1]}}, "10 integers"),
        ({"superclasses": {"mapping": [0, 2] * 5}}, "every number"),
        ({"superclasses": {"mapping": "cifar2x6"}}, "Did you mean 'cifar2x5'"),
        ({"subset": {"per_class": 0}}, "at least 1"),
        ({"subset": {"per_class": 1.5}}, "per_class must be an integer, not 1.5"),
        ({"subset": {"per_class": 1, "seed": -1}}, r"subset\.seed must be in \[0, 2\^32\), not -1"),
        ({"subset": {"per_class": 1, "order": "a"}}, "subset.order must be a number, not 'a'"),
        ({"drop_classes": {"classes": 3}}, "classes must be a list whose items are each an integer, not 3"),
        ({"mixed_targets": {"epsilon": 1.5}}, r"epsilon in \[0, 1\]"),
        ({"mixed_targets": {"epsilon": 0.5, "other": "onehot"}}, "'labels' or 'uniform'"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused_in_one_line(protocols, words):
    with pytest.raises(UserError, match=words):
        apply(make_dataset(), **protocols)


# ---- batches


def test_batches_mix_labelled_and_unlabelled_in_the_set_proportion_at_their_own_pace():
    partly = apply(make_dataset(), labelled_fraction={"fraction": 0.1, "share": 0.25})
    order = make_order(partly, 16, 3)
    assert order.steps == 500 // 16 and order.labelled == 4
    seen = {}
    for epoch in range(4):
        steps = order.epoch(epoch)
        known = partly.labelled[steps.index]
        np.testing.assert_array_equal(known.sum(axis=1), 4)
        np.testing.assert_array_equal(np.flatnonzero(known[0]), [0, 4, 8, 12])  # every device gets its share
        for row, visit in zip(steps.index[known], steps.visit[known], strict=True):
            seen.setdefault(int(visit), []).append(int(row))
    passes = [seen[visit] for visit in sorted(seen)][:-1]
    assert len(passes) >= 8
    for one in passes:  # every labelled example once per pass
        assert sorted(one) == partly.labelled_train.tolist()
    assert passes[0] != passes[1]


def test_the_labelled_alone_fill_an_epoch_of_the_same_length():
    alone = apply(make_dataset(), labelled_fraction={"fraction": 0.1, "unlabelled": "drop"})
    steps = make_order(alone, 16, 3).epoch(0)
    assert steps.index.shape == (31, 16)
    times = np.bincount(steps.index.ravel(), minlength=500)[alone.splits["train"]]
    assert times.min() >= 9 and times.max() <= 10
    pairs = np.stack([steps.index.ravel(), steps.visit.ravel()])
    assert len(np.unique(pairs, axis=1).T) == pairs.shape[1]  # no view occurs twice


def test_an_ordinary_epoch_visits_every_example_once():
    data = make_dataset()
    order = make_order(data, 25, 1)
    steps = order.epoch(7)
    assert sorted(steps.index.ravel()) == data.splits["train"].tolist() and (steps.visit == 7).all()
    assert isinstance(order, Order)
    with pytest.raises(UserError, match="more than the 500 training examples"):
        make_order(data, 501, 0)


def test_an_unlabelled_share_is_at_least_one_example():
    partly = apply(make_dataset(), labelled_fraction={"fraction": 0.1, "share": 0.001})
    assert make_order(dataclasses.replace(partly), 16, 0).labelled == 1
