"""Parting a config into structure and numbers, and putting it together again."""

import numpy as np

from kdjax.training.structure import join, part

TREE = {"a": 1, "b": 2.5, "c": {"d": "x", "e": {"f": 0.1, "g": (1, 2)}}, "h": True, "seed": np.uint32(7), "i": {}}


def test_join_undoes_part():
    assert join(*part(TREE)) == TREE


def test_floats_alone_do_not_change_the_structure():
    other = {**TREE, "b": -1.0, "seed": np.uint32(8)}
    assert part(TREE)[0] == part(other)[0]
    assert hash(part(TREE)[0]) == hash(part(other)[0])


def test_everything_else_does():
    for field, value in (("a", 2), ("h", False), ("i", {"j": 1.0})):
        assert part(TREE)[0] != part({**TREE, field: value})[0]
