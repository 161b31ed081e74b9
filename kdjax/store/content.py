"""What a run was made of, as hashes: equal names do not mean equal data, teachers or code."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.store import tree


def variables_hash(variables: Any) -> str:
    """Returns the sha256 in hexadecimal of a network's variables: names, shapes, dtypes and bytes of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(variables).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{tree.name(path)} {tree.describe(array)} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words what differs between two records of hashes; what only one of them has does not count.

    Args:
      before: See `Run.check_content`.
      now: Likewise.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    return [_words(path) for path in new if path in old and old[path] != new[path]]


def _flat(record: Mapping[str, Any], parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and "sha256" not in value:
            yield from _flat(value, (*parts, name))
        else:
            yield (*parts, name), value["sha256"] if isinstance(value, Mapping) else value


def _words(path: tuple[str, ...]) -> str:
    part, *rest = path
    name = "/".join(rest)
    return {
        "data": f"the {name} of the data set",
        "splits": f"the rows of the split '{name}'",
        "teachers": f"the weights, or the file, of teacher '{name}'",
        "init_from": "the weights of config.init_from",
        "code": f"the source of '{name}'",
    }.get(part, "/".join(path))
