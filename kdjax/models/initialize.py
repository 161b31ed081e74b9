"""Initial variables: a function of (seed, a leaf's path) alone, drawn by NumPy so that nothing is compiled for it."""

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
from kdjax.models.apply import call_arguments
from kdjax.models.pick import INTERMEDIATES, Picked
from kdjax.randomness import leaf_generator

COLLECTIONS = ("params", "batch_stats")
PASSING = (INTERMEDIATES, "perturbations")  # collections of flax that one call makes and nobody keeps

Shape = Sequence[int]
# (generator, shape of the leaf, shape of its layer's kernel or None) -> float64 values
Initializer = Callable[[np.random.Generator, Shape, Shape | None], np.ndarray]


def kaiming_normal_fan_out(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws from N(0, 2 / fan_out), fan_out = kernel positions x output channels (He et al. 2015, eq. 14)."""
    del kernel
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return generator.standard_normal(shape) * math.sqrt(2 / fan_out)


def torch_linear(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws uniformly within ±1/√fan_in of the layer, weights and biases alike: what PyTorch's linear layer does."""
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
    """Draws a layer with a kernel as `torch_linear`, which PyTorch's convolutions follow too; a norm's bias is zero."""
    return np.zeros(shape) if kernel is None else torch_linear(generator, shape, kernel)


def torch_transposed(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws a transposed convolution as PyTorch does, uniformly within ±1/√(kernel positions x output channels)."""
    bound = 1 / math.sqrt(math.prod(kernel[:-2]) * kernel[-1])
    return generator.uniform(-bound, bound, shape)


# PyTorch's defaults for every layer; a leaf of another name (a class token) keeps to the network's own table.
TORCH_INITIALIZERS = ((r".*/(scale|var)", ones), (r".*/mean", zeros), (r".*/(kernel|bias)", torch_layer))

SCHEMES = ("paper", "torch", "flax")


def init_variables(module: nn.Module | Picked, input_shape: Shape, seed: int, scheme: str = "paper") -> dict[str, Any]:
    """Returns a network's initial variables as NumPy arrays.

    A network with a table INITIALIZERS of (pattern of a leaf's path, initializer) pairs has its leaves drawn in
    float64, each by Philox(seed, crc32 of its path), and cast last: the same bits on any machine with one NumPy
    version, whatever other leaves there are. Any other network is initialised by its own `init`.

    Args:
      module: the network, not bound.
      input_shape: of a batch of images, the batch axis included.
      seed: in [0, 2^32).
      scheme: 'paper' draws as the network's table says, 'torch' as PyTorch's layers do by default (uniform within
        ±1/√fan_in), 'flax' by the network's own `init`.

    Returns:
      {'params': ..., 'batch_stats': ...}, the latter {} where the network has none; float32, or float64 under
      jax_enable_x64, and for a network with its own `init` whatever that gives.

    Raises:
      UserError: the network keeps other variables than these.
    """
    module = module.module if isinstance(module, Picked) else module
    table = getattr(module, "INITIALIZERS", None)
    if scheme == "torch":
        table = (*TORCH_INITIALIZERS, *(table or ()))
    if table is None or scheme == "flax":
        init = functools.partial(module.init, **call_arguments(module, False))
        images = np.zeros(input_shape, jax.dtypes.canonicalize_dtype(float))
        variables = jax.jit(init)(jax.random.key(seed), images)
        return _kept(module, jax.tree.map(np.asarray, variables))
    return draw_variables(variable_shapes(module, input_shape), table, seed, type(module).__name__)


def draw_variables(shapes: Mapping[str, Any], table: Sequence, seed: int, who: str) -> dict[str, Any]:
    """Draws variables leaf by leaf, each by Philox(seed, crc32 of its path).

    Args:
      shapes: {'params': ..., 'batch_stats': ...}, leaves with a shape.
      table: of (pattern of a leaf's path inside its collection, initializer) pairs; the first that matches draws.
      seed: in [0, 2^32).
      who: owns the table, for the message.

    Returns:
      NumPy arrays, float32, or float64 under jax_enable_x64.

    Raises:
      UserError: a leaf that no pattern matches.
    """
    leaves = traverse_util.flatten_dict(dict(shapes), sep="/")
    drawn = {path: _draw(who, table, path, leaves, seed) for path in leaves}
    return {name: {} for name in COLLECTIONS} | traverse_util.unflatten_dict(drawn, sep="/")


def variable_shapes(module: nn.Module, input_shape: Shape) -> dict[str, Any]:
    """Returns the shapes of a network's variables, {'params': ..., 'batch_stats': ...}, computing nothing.

    Args:
      module: the network, not bound.
      input_shape: of a batch of images, the batch axis included.

    Raises:
      UserError: the network keeps other variables than these.
    """
    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(module.init, **call_arguments(module, False))
    return _kept(module, jax.eval_shape(init, jax.random.key(0), images))


def _draw(who: str, table: Sequence, path: str, leaves: Mapping[str, Any], seed: int) -> np.ndarray:
    collection, _, within = path.partition("/")
    kernel = leaves.get(f"{path.rpartition('/')[0]}/kernel") if collection == "params" else None
    for pattern, initializer in table:
        if re.fullmatch(pattern, within):
            generator = leaf_generator(seed, path)
            values = initializer(generator, leaves[path].shape, kernel.shape if kernel is not None else None)
            return values.astype(jax.dtypes.canonicalize_dtype(np.float64))
    raise UserError(f"{who}.INITIALIZERS has no pattern for the leaf '{within}': add one.")


def _kept(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    for collection in variables:
        if collection not in COLLECTIONS + PASSING:
            raise UserError(
                f"model {type(module).__name__} keeps variables in '{collection}'; "
                "kdjax carries params and batch_stats only: keep its state in 'batch_stats'."
            )
    return {name: variables.get(name, {}) for name in COLLECTIONS}


def has_batch_norm(variables: Mapping[str, Any]) -> bool:
    """Tells whether a network keeps batch statistics."""
    return bool(jax.tree.leaves(variables.get("batch_stats", {})))


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Counts the trainable scalars of a network's variables."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
