"""Partitions a config into structure, which shapes the compiled step, and numbers, which are its arguments."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

NUMBER = "<number>"  # stands in the structure where a traced number goes


class Structure(NamedTuple):
    """A hashable nested mapping: ((name, value or Structure or NUMBER), ...)."""

    items: tuple


def partition(tree: Mapping[str, Any]) -> tuple[Structure, dict[str, Any]]:
    """Splits a nested mapping into its hashable structure and the floats and NumPy scalars in it.

    `combine(*partition(tree)) == tree`. Two configs that differ only in floats have one structure, hence one compiled
    step.
    """
    structure, numbers = [], {}
    for name, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            value, inner = partition(value)
            if inner:
                numbers[name] = inner
        elif isinstance(value, float | np.generic):
            numbers[name], value = value, NUMBER
        elif isinstance(value, list):
            value = tuple(value)
        structure.append((name, value))
    return Structure(tuple(structure)), numbers


def combine(structure: Structure, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Puts numbers, traced or not, back into their places."""
    tree = {}
    for name, value in structure.items:
        if isinstance(value, Structure):
            tree[name] = combine(value, numbers.get(name, {}))
        else:
            tree[name] = numbers[name] if isinstance(value, str) and value == NUMBER else value
    return tree
