"""Variables of a frozen network made ready for many forward passes: BatchNorm folded, weights cast beforehand.

In evaluation, BatchNorm multiplies each channel by a number and adds another one. Where its input is the output of a
convolution or a linear layer, that layer's weights take the factor, and one addition is left:

    a = scale / √(var + ε),   BatchNorm(w * x + b) = (a w) * x + (a b + bias - a mean).

This is exact up to the rounding of floats. When it applies: a BatchNorm is folded if it normalises by running
statistics, its input is the output of a flax Conv or Dense, nothing else reads that output (no sum, no picked feature),
and both layers are called once. All others stay. `fold` finds them in the traced network, so any flax network will do.
Scales and biases of BatchNorm stay among the parameters, for losses that read them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from kdjax.models.apply import FOLDED, call
from kdjax.models.feature_extraction import FeatureExtractor
from kdjax.types import Array

Path = tuple[str, ...]


class Norm(NamedTuple):
    """A BatchNorm that can be folded.

    Attributes:
      layer: Path of the layer whose output is its input.
      epsilon: What it adds to the variance.
      dtype: Type of its output.
    """

    layer: Path
    epsilon: float
    dtype: Any


class Foldable(NamedTuple):
    """What can be made ready in a network.

    Attributes:
      norms: Path of each BatchNorm that can be folded -> what is needed for it.
      dtypes: Path of each layer that casts its weights when it is called -> the type that it casts them to.
    """

    norms: dict[Path, Norm]
    dtypes: dict[Path, Any]


def fold(
    module: nn.Module | FeatureExtractor, variables: Mapping[str, Any], input_shape: Sequence[int]
) -> dict[str, Any]:
    """Returns variables with which `kdjax.models.call` computes the same evaluation in fewer operations.

    Args:
      module: Network, not bound to variables.
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      input_shape: Shape of a batch of images, batch axis included.

    Returns:
      {'params', 'batch_stats', 'folded'}: weights with the factors of BatchNorm, in the type in which their layer
      computes; the statistics of each BatchNorm that is left; for each other one, what is left of it to add.
    """
    flat = (traverse_util.flatten_dict(variables.get(name, {})) for name in ("params", "batch_stats"))
    params, stats = ({path: np.asarray(leaf) for path, leaf in leaves.items()} for leaves in flat)
    found = _foldable(module, tuple(input_shape), _signature(params), _signature(stats))
    shifts = {}
    for path, norm in found.norms.items():
        mean, var = (stats.pop((*path, name)).astype(np.float64) for name in ("mean", "var"))
        factor = params.get((*path, "scale"), 1.0) / np.sqrt(var + norm.epsilon)
        shifts[*path, "shift"] = (params.get((*path, "bias"), 0.0) - factor * mean).astype(norm.dtype)
        for weights in ((*norm.layer, name) for name in ("kernel", "bias")):
            if weights in params:
                params[weights] = (factor * params[weights]).astype(params[weights].dtype)
    params = {path: leaf.astype(found.dtypes.get(path[:-1], leaf.dtype)) for path, leaf in params.items()}
    nested = traverse_util.unflatten_dict
    return {"params": nested(params), "batch_stats": nested(stats), FOLDED: nested(shifts)}


def _signature(leaves: Mapping[Path, Any]) -> tuple:
    return tuple((path, leaf.shape, leaf.dtype) for path, leaf in leaves.items())


@functools.lru_cache(maxsize=32)
def _foldable(
    module: nn.Module | FeatureExtractor, input_shape: tuple[int, ...], params: tuple, stats: tuple
) -> Foldable:
    """Traces a network in evaluation and finds what `fold` changes."""
    shapes = [{path: jax.ShapeDtypeStruct(shape, dtype) for path, shape, dtype in leaves} for leaves in (params, stats)]
    variables = dict(zip(("params", "batch_stats"), map(traverse_util.unflatten_dict, shapes), strict=True))
    calls = _Calls()

    def run(variables: Any, images: Array) -> Any:
        with nn.intercept_methods(calls.note):
            return call(module, variables, images, train=False)[0]

    images = jax.ShapeDtypeStruct(input_shape, jax.dtypes.canonicalize_dtype(float))
    jaxpr = jax.make_jaxpr(run)(variables, images).jaxpr
    reads = Counter(id(var) for equation in jaxpr.eqns for var in equation.invars)
    reads += Counter(id(var) for var in jaxpr.outvars)
    named = {each.params["name"]: id(each.outvars[0]) for each in jaxpr.eqns if each.primitive.name == "name"}
    norms = {
        path: norm
        for path, norm in calls.norms.items()
        if calls.counts[path] == calls.counts[norm.layer] == 1 and reads[named.get("/".join(norm.layer), 0)] == 1
    }
    return Foldable(norms, calls.dtypes)


class _Calls:
    """The calls of layers and BatchNorms in the trace of a network.

    Attributes:
      counts: Path -> number of calls.
      norms: Path of each BatchNorm whose input is a layer's output -> what is needed to fold it.
      dtypes: Path of each layer that has a type of its own -> the type.
    """

    def __init__(self):
        self.counts: Counter[Path] = Counter()
        self.norms: dict[Path, Norm] = {}
        self.dtypes: dict[Path, Any] = {}
        self._outputs: list[tuple[Array, Path]] = []

    def note(self, call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        """Interceptor for `nn.intercept_methods`. It names the output of each layer in the trace by its path."""
        module, result = context.module, call_next(*args, **kwargs)
        if context.method_name != "__call__":
            return result
        path = tuple(module.path)
        self.counts[path] += 1
        if _is_plain_layer(module):
            result = checkpoint_name(result, "/".join(path))
            self._outputs.append((result, path))
            if module.dtype is not None:
                self.dtypes[path] = module.dtype
        elif type(module) is nn.BatchNorm and args and _is_frozen(module, kwargs):
            layer = next((layer for output, layer in self._outputs if output is args[0]), None)
            if layer is not None:
                self.norms[path] = Norm(layer, module.epsilon, result.dtype)
        return result


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is linear in its weights, with the channels of its output in their last axis."""
    if type(module) is nn.Conv:
        return module.conv_general_dilated is None and module.conv_general_dilated_cls is None
    return type(module) is nn.Dense and module.dot_general is None and module.dot_general_cls is None


def _is_frozen(module: nn.BatchNorm, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of BatchNorm normalises the last axis by running statistics."""
    return module.axis == -1 and bool(kwargs.get("use_running_average", module.use_running_average))
