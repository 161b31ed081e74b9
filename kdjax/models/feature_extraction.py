"""Features that a config picks from a network by path, without a change to the network's code."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util

from kdjax.errors import UserError, nearest
from kdjax.types import Array, ModelOutput

INTERMEDIATES = "intermediates"  # flax's collection of captured outputs and sown values


class FeatureExtractor(NamedTuple):
    """A network and the features that a config picks from it. It is hashable, so jit can take it as static.

    Attributes:
      module: The network.
      features: Names of the network's own features, paths of submodules ('block1', 'encoder/layer2') whose outputs are
        features, or paths of values that the network sows; () keeps the network's own features.
      pooled: Such a name or path for the pooled vector; '' keeps the network's own pooled vector, or takes the spatial
        mean of the last feature if the network has none.
    """

    module: nn.Module
    features: tuple[str, ...] = ()
    pooled: str = ""


def capture_filter(extractor: FeatureExtractor) -> Callable[[nn.Module, str], bool] | bool:
    """Returns the `capture_intermediates` argument that makes flax store the outputs of the picked submodules."""
    if not extractor.features:
        return False
    wanted = {*extractor.features, extractor.pooled}
    return lambda module, method: method == "__call__" and "/".join(module.path) in wanted


def extract_features(extractor: FeatureExtractor, output: ModelOutput, captured: Mapping[str, Any]) -> ModelOutput:
    """Returns the output with the picked features, in the order in which the config names them.

    Args:
      extractor: The network and the names of its features.
      output: Output that the network returned.
      captured: Variable collections that the call left behind, INTERMEDIATES among them.

    Raises:
      UserError: A name is not a feature, a submodule or a sown value. The message names the nearest one.
    """
    if not extractor.features:
        return output
    known = {**captured_arrays(captured), **output.features}
    features = {name: _find(name, known, extractor.module) for name in extractor.features}
    if extractor.pooled:
        return output._replace(features=features, pooled=_find(extractor.pooled, known, extractor.module))
    pooled = spatial_mean_of(list(features.values())[-1]) if output.pooled is None else output.pooled
    return output._replace(features=features, pooled=pooled)


def captured_arrays(captured: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the captured arrays by path: a submodule's output under its path, a sown value under `path/name`."""
    found = {}
    for path, value in traverse_util.flatten_dict(captured.get(INTERMEDIATES, {})).items():
        # flax stores one entry a call; a module that is called twice has its last output taken.
        value = value[-1] if isinstance(value, tuple) and value else value
        if hasattr(value, "shape"):
            found["/".join(path[:-1] if path[-1] == "__call__" else path)] = value
    return found


def spatial_mean_of(x: Array) -> Array:
    """Returns the mean [batch, channels] over all axes between batch and channels, in float32 or wider."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _find(name: str, known: Mapping[str, Array], module: nn.Module) -> Array:
    if name not in known:
        raise UserError(f"model {type(module).__name__} has no feature '{name}'.{nearest(name, known)}")
    return known[name]
