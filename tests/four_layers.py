"""A network of four layers with all the maps that losses read, which compiles in seconds."""

from typing import Any

import flax.linen as nn

from kdjax.models.initialize import TORCH_INITIALIZERS
from kdjax.types import ModelOutput


class FourLayers(nn.Module):
    """A stem and three stages of one convolution each, and a classifier; sizes 1, 1/2 and 1/4."""

    num_classes: int
    widths: tuple[int, ...] = (4, 6, 8)
    dtype: Any = None

    INITIALIZERS = TORCH_INITIALIZERS  # float64 where jax is

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(self.widths[0], (3, 3), name="stem")(images))
        features = {"stem": x}
        for stage, width in enumerate(self.widths, start=1):
            x = nn.Conv(width, (3, 3), strides=1 if stage == 1 else 2, padding=1, use_bias=False, name=f"conv{stage}")(
                x
            )
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn{stage}")(x)
            features |= {f"stage{stage}_preact": x, f"stage{stage}": nn.relu(x)}
            x = nn.relu(x)
        pooled = x.mean(axis=(1, 2))
        return ModelOutput(nn.Dense(self.num_classes, name="fc")(pooled), features, pooled)

    def preact_norms(self):
        return {f"stage{i}": f"bn{i}" for i in (1, 2, 3)}
