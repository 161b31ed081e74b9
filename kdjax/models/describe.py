"""A network's description: its parameters by layer, its features with their shapes, and its cost."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from kdjax.models.apply import call, feature_shapes
from kdjax.models.feature_extraction import FeatureExtractor
from kdjax.models.initialize import variable_shapes


class Description(NamedTuple):
    """What `describe` reports of a network.

    Attributes:
      parameters: (path, shape) of every parameter, in the order of depth.
      statistics: Number of running scalars of all BatchNorm layers.
      features: (name, shape for one image) of the features that losses are given.
      inner: (path, shape for one image) of the outputs of submodules and of sown values; config.model.features may
        pick them as features.
      pooled: Shape of the pooled vector for one image, None if there is none.
      flops: Floating-point operations of the forward pass of one image, as XLA counts them before optimisation.
    """

    parameters: list[tuple[str, tuple[int, ...]]]
    statistics: int
    features: list[tuple[str, tuple[int, ...]]]
    inner: list[tuple[str, tuple[int, ...]]]
    pooled: tuple[int, ...] | None
    flops: float


def describe(module: nn.Module | FeatureExtractor, image_shape: Sequence[int]) -> Description:
    """Returns the description of a network, without computing anything.

    Args:
      module: Network, or a feature extractor.
      image_shape: Shape of one image, (height, width, channels) or (dim,).
    """
    shape = (1, *image_shape)
    inside = module.module if isinstance(module, FeatureExtractor) else module
    variables = variable_shapes(inside, shape)
    images = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(float))
    forward = jax.jit(lambda variables, images: call(module, variables, images, train=False)[0])
    output = jax.eval_shape(forward, variables, images)
    cost = forward.lower(variables, images).cost_analysis() or {}
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    own, inner = feature_shapes(inside, shape)
    names = module.features if isinstance(module, FeatureExtractor) else own
    depth = {path: number for number, path in enumerate(inner)}
    paths = sorted(leaves, key=lambda path: depth.get(path.rpartition("/")[0], -1))
    return Description(
        parameters=[(path, leaves[path].shape) for path in paths],
        statistics=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["batch_stats"])),
        features=[(name, output.features[name].shape[1:]) for name in names],
        inner=[(path, shape[1:]) for path, shape in inner.items()],
        pooled=None if output.pooled is None else output.pooled.shape[1:],
        flops=cost.get("flops", math.nan),
    )
