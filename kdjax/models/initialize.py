"""Initial variables as a function of the seed and a leaf's path alone, drawn by NumPy so that nothing is compiled."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.models.apply import call_arguments, init_keys
from kdjax.models.feature_extraction import INTERMEDIATES, FeatureExtractor
from kdjax.randomness import leaf_generator

COLLECTIONS = ("params", "batch_stats")
TRANSIENT = (INTERMEDIATES, "perturbations")  # flax's collections that a call creates and that are not stored

Shape = Sequence[int]
# (generator, shape of the leaf, shape of its layer's kernel, None if it has none) -> float64 values
Initializer = Callable[[np.random.Generator, Shape, Shape | None], np.ndarray]
Table = Sequence[tuple[str, Initializer]]  # (pattern of a leaf's path, initializer); the first match draws


def kaiming_normal_fan_out(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws from N(0, 2 / fan_out), fan_out being kernel positions x output channels.

    References:
      He, Zhang, Ren & Sun, 2015, "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet
      Classification", eq. 14, https://arxiv.org/abs/1502.01852
    """
    del kernel
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return generator.standard_normal(shape) * math.sqrt(2 / fan_out)


def torch_linear(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws uniformly in ±1/√fan_in of the layer, weights and biases alike, as PyTorch's Linear and Conv layers do."""
    assert kernel is not None, "a leaf that is drawn by fan-in belongs to a layer with a kernel"
    bound = 1 / math.sqrt(math.prod(kernel[:-1]))
    return generator.uniform(-bound, bound, shape)


def normal_001(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws from N(0, 0.01²)."""
    del kernel
    return 0.01 * generator.standard_normal(shape)


def ones(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Returns ones."""
    del generator, kernel
    return np.ones(shape)


def zeros(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Returns zeros."""
    del generator, kernel
    return np.zeros(shape)


def torch_layer(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws a layer that has a kernel by `torch_linear`; the bias of a normalisation layer, which has none, is zero."""
    return np.zeros(shape) if kernel is None else torch_linear(generator, shape, kernel)


def torch_transposed(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws a transposed convolution as PyTorch does, uniformly in ±1/√(kernel positions x output channels)."""
    assert kernel is not None, "a transposed convolution has a kernel"
    bound = 1 / math.sqrt(math.prod(kernel[:-2]) * kernel[-1])
    return generator.uniform(-bound, bound, shape)


# PyTorch's defaults for every layer. The network's own table draws leaves with other names, such as a class token.
TORCH_INITIALIZERS = ((r".*/(scale|var)", ones), (r".*/mean", zeros), (r".*/(kernel|bias)", torch_layer))

SCHEMES = ("paper", "torch", "flax")


def init_variables(
    module: nn.Module | FeatureExtractor, input_shape: Shape, seed: int, scheme: str = "paper"
) -> dict[str, Any]:
    """Returns a network's initial variables as NumPy arrays.

    A network with a table INITIALIZERS of (pattern of a leaf's path, initializer) pairs has its leaves drawn in
    float64, each by Philox(seed, crc32 of its path), and cast to the result's type. The bits are the same on any
    machine with one version of NumPy, and a leaf does not depend on the network's other leaves. A network without the
    table is initialised by its own `init`.

    Args:
      module: Network, not bound to variables.
      input_shape: Shape of a batch of images, batch axis included.
      seed: Seed in [0, 2^32).
      scheme: 'paper' draws by the network's table, 'torch' as PyTorch's layers do by default (uniformly in ±1/√fan_in),
        'flax' by the network's own `init`.

    Returns:
      {'params': ..., 'batch_stats': ...}; batch_stats is {} if the network has none. Arrays are float32, or float64
      under jax_enable_x64; a network's own `init` decides for itself.

    Raises:
      UserError: The network has variables in other collections, or its table has no pattern for a leaf.
    """
    module = module.module if isinstance(module, FeatureExtractor) else module
    table = getattr(module, "INITIALIZERS", None)
    if scheme == "torch":
        table = (*TORCH_INITIALIZERS, *(table or ()))
    if table is None or scheme == "flax":
        init = functools.partial(module.init, **call_arguments(module, False))
        images = np.zeros(input_shape, jax.dtypes.canonicalize_dtype(float))
        variables = jax.jit(init)(init_keys(seed), images)
        return _stored_collections(module, jax.tree.map(np.asarray, variables))
    return draw_variables(variable_shapes(module, input_shape), table, seed, type(module).__name__)


def draw_variables(shapes: Mapping[str, Any], table: Table, seed: int, who: str) -> dict[str, Any]:
    """Draws variables leaf by leaf, each by Philox(seed, crc32 of its path).

    Args:
      shapes: {'params': ..., 'batch_stats': ...}, whose leaves have a shape.
      table: Pairs (pattern of a leaf's path inside its collection, initializer); the first that matches draws the leaf.
      seed: Seed in [0, 2^32).
      who: Name of the table's owner, for the error message.

    Returns:
      {'params': ..., 'batch_stats': ...} of NumPy arrays, float32, or float64 under jax_enable_x64.

    Raises:
      UserError: No pattern matches a leaf.
    """
    leaves = traverse_util.flatten_dict(dict(shapes), sep="/")
    drawn = {path: _draw(who, table, path, leaves, seed) for path in leaves}
    return {name: {} for name in COLLECTIONS} | traverse_util.unflatten_dict(drawn, sep="/")


def variable_shapes(module: nn.Module, input_shape: Shape) -> dict[str, Any]:
    """Returns the shapes of a network's variables, {'params': ..., 'batch_stats': ...}, without computing anything.

    Args:
      module: Network, not bound to variables.
      input_shape: Shape of a batch of images, batch axis included.

    Raises:
      UserError: The network has variables in other collections.
    """
    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(module.init, **call_arguments(module, False))
    return _stored_collections(module, jax.eval_shape(init, init_keys(0), images))


def _draw(who: str, table: Table, path: str, leaves: Mapping[str, Any], seed: int) -> np.ndarray:
    """Returns the initial values of the leaf `path`, drawn by the first pattern that matches."""
    collection, _, within = path.partition("/")
    kernel = leaves.get(f"{path.rpartition('/')[0]}/kernel") if collection == "params" else None
    for pattern, initializer in table:
        if re.fullmatch(pattern, within):
            generator = leaf_generator(seed, path)
            values = initializer(generator, leaves[path].shape, kernel.shape if kernel is not None else None)
            return values.astype(jax.dtypes.canonicalize_dtype(np.float64))
    raise UserError(f"{who}.INITIALIZERS has no pattern for the leaf '{within}'; add one.")


def _stored_collections(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the collections that are stored with a run; refuses a network that has others."""
    for collection in variables:
        if collection not in COLLECTIONS + TRANSIENT:
            raise UserError(
                f"model {type(module).__name__} keeps variables in '{collection}', but kdjax stores 'params' and "
                "'batch_stats' only; keep its state in 'batch_stats'."
            )
    return {name: variables.get(name, {}) for name in COLLECTIONS}


def has_batch_norm(variables: Mapping[str, Any]) -> bool:
    """Returns whether a network has batch statistics."""
    return bool(jax.tree.leaves(variables.get("batch_stats", {})))


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Returns the number of scalars in a network's 'params'."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
