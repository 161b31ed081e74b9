"""Starting from the weights of another run, and what of them is trained."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from flax import traverse_util

from kdjax.errors import UserError, nearest


def check_head(config: Any, variables: Mapping[str, Any]) -> None:
    """Refuses a head that the network does not have, where the config tells it from the body.

    Raises:
      UserError: config.model.head names no layer of the network.
    """
    needed = config.trainable == "head" or config.optimizer.body_factor != 1.0
    if needed and config.model.head not in variables["params"]:
        hint = nearest(config.model.head, variables["params"])
        raise UserError(f"config.model.head: {config.model.name} has no layer '{config.model.head}'.{hint}")


def start_from(variables: Mapping[str, Any], origin: Mapping[str, Any], run: str, head: str) -> dict[str, Any]:
    """Returns initial variables with the weights of another run in them.

    Args:
      variables: freshly drawn, NumPy arrays.
      origin: of the other run.
      run: its name, for messages.
      head: name of the classifier among the parameters; one of another shape stays as drawn.

    Raises:
      UserError: any other leaf that is missing, surplus or of another shape, by name.
    """
    fresh, given = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (variables, origin))
    own_head = {path: fresh[path] for path in fresh if path.startswith(f"params/{head}/")}
    given_head = {path: given[path] for path in given if path.startswith(f"params/{head}/")}
    if own_head and _shapes(own_head) != _shapes(given_head):
        logging.warning("the head '%s' differs from that of '%s' and is drawn afresh.", head, run)
        given = {path: leaf for path, leaf in given.items() if path not in given_head} | own_head
    _check_same(fresh, given, run)
    started = {path: given[path].astype(leaf.dtype) for path, leaf in fresh.items()}
    return {name: {} for name in variables} | traverse_util.unflatten_dict(started, sep="/")


def _check_same(fresh: Mapping[str, Any], given: Mapping[str, Any], run: str) -> None:
    problems = {
        "missing there": sorted(set(fresh) - set(given)),
        "unknown here": sorted(set(given) - set(fresh)),
        "of another shape": [path for path in fresh if path in given and fresh[path].shape != given[path].shape],
    }
    found = [f"{what}: {', '.join(paths)}" for what, paths in problems.items() if paths]
    if found:
        raise UserError(f"config.init_from='{run}' is another network than config.model; {'; '.join(found)}.")


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in leaves.items()}


def freeze_body(params: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Returns the parameters with gradients stopped everywhere but in the head."""
    return {name: tree if name == head else jax.lax.stop_gradient(tree) for name, tree in params.items()}


def scale_body(updates: Mapping[str, Any], head: str, factor: Any) -> dict[str, Any]:
    """Returns an optimizer's updates with those of all parameters but the head's times `factor`."""
    scaled = jax.tree.map(lambda update: update * factor, {n: tree for n, tree in updates.items() if n != head})
    return {name: scaled.get(name, tree) for name, tree in updates.items()}


def hold(teachers: Mapping[str, Any], trained: set[str]) -> dict[str, Any]:
    """Returns the updates of a term's adapters, by teacher, with those of all but the trained parts at zero."""
    return {
        name: {part: t if part in trained else jax.tree.map(jax.numpy.zeros_like, t) for part, t in tree.items()}
        for name, tree in teachers.items()
    }
