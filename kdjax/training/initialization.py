"""Initial weights from another run: `config.init_from`."""

from collections.abc import Mapping
from typing import Any

from absl import logging
from flax import traverse_util

from kdjax.errors import UserError


def initialize_from(variables: Mapping[str, Any], origin: Mapping[str, Any], run: str, head: str) -> dict[str, Any]:
    """Returns initial variables with the weights of another run in them.

    Args:
      variables: Freshly drawn variables, NumPy arrays.
      origin: The variables of the other run.
      run: Name of the other run, for messages.
      head: Name of the classifier among the parameters; one of another shape stays as drawn.

    Raises:
      UserError: Any other leaf is missing, surplus or of another shape; the message names it.
    """
    fresh, given = _leaves(variables), _leaves(origin)
    own_head = {path: fresh[path] for path in fresh if path.startswith(f"params/{head}/")}
    given_head = {path: given[path] for path in given if path.startswith(f"params/{head}/")}
    if own_head and _shapes(own_head) != _shapes(given_head):
        logging.warning("the head '%s' differs from that of '%s' and is drawn afresh.", head, run)
        given = {path: leaf for path, leaf in given.items() if path not in given_head} | own_head
    _check_same(fresh, given, run)
    started = {path: given[path].astype(leaf.dtype) for path, leaf in fresh.items()}
    return {name: {} for name in variables} | traverse_util.unflatten_dict(started, sep="/")


def in_body(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of a network as those of the body of a network around it, unless they are that already."""
    if "body" in variables["params"]:
        return dict(variables)
    return {name: {"body": tree} if tree else tree for name, tree in variables.items()}


def _check_same(fresh: Mapping[str, Any], given: Mapping[str, Any], run: str) -> None:
    problems = {
        "missing there": sorted(set(fresh) - set(given)),
        "unknown here": sorted(set(given) - set(fresh)),
        "of another shape": [path for path in fresh if path in given and fresh[path].shape != given[path].shape],
    }
    found = [f"{what}: {', '.join(paths)}" for what, paths in problems.items() if paths]
    if found:
        raise UserError(f"config.init_from='{run}' is another network than config.model; {'; '.join(found)}.")


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path -> leaf."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in leaves.items()}
