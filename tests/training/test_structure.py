"""Partitioning a config into structure and numbers, and combining them again."""

import numpy as np

from kdjax.training.structure import combine, partition

TREE = {"a": 1, "b": 2.5, "c": {"d": "x", "e": {"f": 0.1, "g": (1, 2)}}, "h": True, "seed": np.uint32(7), "i": {}}


def test_combine_undoes_partition():
    assert combine(*partition(TREE)) == TREE


def test_floats_alone_do_not_change_the_structure():
    other = {**TREE, "b": -1.0, "seed": np.uint32(8)}
    assert partition(TREE)[0] == partition(other)[0]
    assert hash(partition(TREE)[0]) == hash(partition(other)[0])


def test_everything_else_does():
    for field, value in (("a", 2), ("h", False), ("i", {"j": 1.0})):
        assert partition(TREE)[0] != partition({**TREE, field: value})[0]
