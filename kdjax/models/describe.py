"""What a network looks like: its parameters by layer, its features with their shapes, its cost."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from kdjax.models.apply import call, feature_shapes
from kdjax.models.initialize import variable_shapes
from kdjax.models.pick import Picked


class Description(NamedTuple):
    """What `describe` tells of a network.

    Attributes:
      parameters: (path, shape) of every parameter, by depth.
      statistics: number of BatchNorm's running scalars.
      features: (name, shape for one image) of the features that losses see.
      inner: likewise, of the submodules' outputs and sown values, which config.model.features may pick as well.
      pooled: shape for one image, None where there is none.
      flops: of the forward pass of one image, as XLA counts them before it optimises.
    """

    parameters: list[tuple[str, tuple[int, ...]]]
    statistics: int
    features: list[tuple[str, tuple[int, ...]]]
    inner: list[tuple[str, tuple[int, ...]]]
    pooled: tuple[int, ...] | None
    flops: float


def describe(module: nn.Module | Picked, image_shape: Sequence[int]) -> Description:
    """Describes a network, computing nothing.

    Args:
      module: the network, or one whose features a config picks.
      image_shape: of one image, (height, width, channels) or (dim,).
    """
    shape = (1, *image_shape)
    inside = module.module if isinstance(module, Picked) else module
    variables = variable_shapes(inside, shape)
    images = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(float))
    forward = jax.jit(lambda variables, images: call(module, variables, images, train=False)[0])
    output = jax.eval_shape(forward, variables, images)
    cost = forward.lower(variables, images).cost_analysis() or {}
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    own, inner = feature_shapes(inside, shape)
    names = module.features if isinstance(module, Picked) else own
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
