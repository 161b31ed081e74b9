"""Finds the dense layers that read a flattened map: PyTorch flattens (channels, height, width), flax the channels last.

The network is traced, and each value is marked by what it is: a leaf of the parameters, a map with its channels first,
or a flattened map. Nothing is computed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util
from jax.extend import core

from kdjax import models
from kdjax.errors import UserError

KEEPS = ("convert_element_type", "broadcast_in_dim", "copy", "reshape", "squeeze")  # of a leaf: it is the same numbers
REDUCES = (
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "argmax",
    "argmin",
)  # in which order does not matter


class Leaf(NamedTuple):
    """A leaf of the parameters; `path` is its path in them."""

    path: str


class Flat(NamedTuple):
    """A flattened map; `shape` is [height, width, channels]."""

    shape: tuple[int, ...]


class ChannelsFirst(NamedTuple):
    """A map that the network itself put in PyTorch's order."""


Mark = Leaf | Flat | ChannelsFirst | None


def is_known_to_pool(module: nn.Module) -> bool:
    """Whether a network is one of kdjax's that flatten no map; networks of the user's own may do so."""
    own = type(module).__module__.startswith("kdjax.models.") and not getattr(module, "FLATTENS", False)
    inner = getattr(module, "network", None)  # of a network around another one
    return own and (not isinstance(inner, nn.Module) or is_known_to_pool(inner))


def flattened_inputs(module: nn.Module, variables: Mapping[str, Any], input_shape: Sequence[int]) -> dict[str, tuple]:
    """Returns path of a kernel in the parameters -> [height, width, channels] of the flattened map that it reads.

    Args:
      module: The network.
      variables: Its variables, or their shapes.
      input_shape: Shape of a batch of images, batch axis included.

    Raises:
      UserError: A flattened map is read by something else than a dense layer, so that its order cannot be changed.
    """
    if len(input_shape) < 4:
        return {}
    images = jax.ShapeDtypeStruct((2, *input_shape[1:]), jax.dtypes.canonicalize_dtype(float))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(variables))

    def logits(images: Any, variables: Any) -> Any:
        return models.call(module, variables, images, train=False)[0].logits

    traced = jax.make_jaxpr(logits)(images, shapes).jaxpr
    paths = traverse_util.flatten_dict(shapes, sep="/")
    order = jax.tree.leaves(traverse_util.unflatten_dict({path: path for path in paths}, sep="/"))
    found: dict[str, tuple] = {}
    _mark(traced, [None, *map(Leaf, order)], found, type(module).__name__)
    return {path.partition("/")[2]: shape for path, shape in found.items()}


def _mark(jaxpr: Any, given: Sequence[Mark], found: dict[str, tuple], name: str) -> list[Mark]:
    """Follows the marks of a traced function's arguments to its results; what dense layers read is added to `found`."""
    marks: dict[Any, Mark] = dict(zip(jaxpr.invars, given, strict=True))

    def mark_of(value: Any) -> Mark:
        return None if isinstance(value, core.Literal) else marks.get(value)

    for eqn in jaxpr.eqns:
        own = [mark_of(value) for value in eqn.invars]
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(own):
            marks |= zip(eqn.outvars, _mark(inner, own, found, name), strict=True)
        else:
            marks |= dict.fromkeys(eqn.outvars, _after(eqn, own, found, name))
    return [mark_of(value) for value in jaxpr.outvars]


def _after(eqn: Any, own: Sequence[Mark], found: dict[str, tuple], name: str) -> Mark:
    """Returns the mark of an operation's results."""
    kind, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    flat = next((mark for mark in own if isinstance(mark, Flat)), None)
    leaf = next((mark for mark in own if isinstance(mark, Leaf)), None)
    if kind == "dot_general" and flat:
        if leaf is None or found.setdefault(leaf.path, flat.shape) != flat.shape:
            _refuse(name, "a product with something else than one kernel")
        return None
    if flat:
        same = len(eqn.outvars) == 1 and shape == (2, math.prod(flat.shape))
        if leaf is not None:
            _refuse(name, f"'{leaf.path}', which has a number for each of its values")
        if not same and kind not in REDUCES:
            _refuse(name, f"'{kind}'")
        return flat if same else None
    before = eqn.invars[0].aval.shape if eqn.invars else ()
    if kind == "reshape" and leaf is None:
        flattens = len(before) > 2 and shape == (2, math.prod(before[1:]))
        several = flattens and before[-1] > 1 and math.prod(before[1:-1]) > 1
        return Flat(tuple(before[1:])) if several and own[0] is None else None
    if kind == "transpose":
        last = len(before) - 1
        first = len(before) > 2 and tuple(eqn.params["permutation"]) == (0, last, *range(1, last))
        return ChannelsFirst() if first else None
    if leaf is not None:
        return leaf if kind in KEEPS else None
    return next((mark for mark in own if mark is not None), None) if before == shape else None


def _refuse(name: str, what: str) -> None:
    raise UserError(
        f"{name} flattens a map [height, width, channels], which PyTorch flattens in another order, and it is read by "
        f"{what}; let a dense layer alone read it, or let the network transpose the map to (0, 3, 1, 2) before it."
    )
