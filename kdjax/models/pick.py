"""A network whose features are picked by path, without a line changed in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util

from kdjax.errors import UserError, nearest
from kdjax.types import Array, ModelOutput

INTERMEDIATES = "intermediates"  # flax's collection of captured and sown values


class Picked(NamedTuple):
    """A network and the names under which a config picks its features; hashable.

    Attributes:
      module: the network.
      features: names of its own features, paths of submodules ('block1', 'encoder/layer2') whose outputs are wanted, or
        paths of values that it sows; () leaves the network's own features as they are.
      pooled: such a name for the vector; '' takes the network's own pooled, or the spatial mean of the last feature.
    """

    module: nn.Module
    features: tuple[str, ...] = ()
    pooled: str = ""


def capture_filter(picked: Picked) -> Callable[[nn.Module, str], bool] | bool:
    """Returns flax's `capture_intermediates` for the submodules that a config picks."""
    wanted = {*picked.features, picked.pooled}
    return (
        (lambda module, method: method == "__call__" and "/".join(module.path) in wanted) if picked.features else False
    )


def pick_features(picked: Picked, output: ModelOutput, captured: Mapping[str, Any]) -> ModelOutput:
    """Returns an output with the features that a config picks, in its order.

    Args:
      picked: the network and the names.
      output: what the network returned.
      captured: collections that the call left behind.

    Raises:
      UserError: a name that is neither a feature, a submodule nor a sown value; it lists those that are.
    """
    if not picked.features:
        return output
    there = {**available(captured), **output.features}
    features = {name: _find(name, there, picked.module) for name in picked.features}
    if picked.pooled:
        return output._replace(features=features, pooled=_find(picked.pooled, there, picked.module))
    pooled = spatial_mean_of(list(features.values())[-1]) if output.pooled is None else output.pooled
    return output._replace(features=features, pooled=pooled)


def available(captured: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the captured arrays by path: a submodule's output under its own, a sown value under `path/name`."""
    found = {}
    for path, value in traverse_util.flatten_dict(captured.get(INTERMEDIATES, {})).items():
        value = value[-1] if isinstance(value, tuple) and value else value  # of a module called twice: the last
        if hasattr(value, "shape"):
            found["/".join(path[:-1] if path[-1] == "__call__" else path)] = value
    return found


def spatial_mean_of(x: Array) -> Array:
    """Returns the mean over all axes between batch and channels, [batch, channels]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _find(name: str, there: Mapping[str, Array], module: nn.Module) -> Array:
    if name not in there:
        raise UserError(f"model {type(module).__name__} has no feature '{name}'.{nearest(name, there)}")
    return there[name]
