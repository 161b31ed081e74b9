"""Multi-layer perceptrons, for vectors and small images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.errors import UserError
from kdjax.models.initialize import torch_linear
from kdjax.types import Array, ModelOutput


class MLP(nn.Module):
    """Dense layers with ReLU on the flattened input, then a linear classifier.

    Its initial weights are those of `init_variables`; `init` of flax gives flax's default ones.

    Attributes:
      num_classes: width of the logits.
      hidden: widths of the hidden layers; () is a linear classifier.
      dtype: of the hidden layers; None takes that of parameters and images.
    """

    num_classes: int
    hidden: Sequence[int] = (512, 512)
    dtype: Any = None

    INITIALIZERS = ((r"(hidden\d+|fc)/(kernel|bias)", torch_linear),)
    # Images are flattened as [height, width, channels] here and as [channels, height, width] by PyTorch.
    TORCH_NAMES = {"kdjax": ((r"(hidden\d+|fc)", lambda layer: layer),)}

    @property
    def STEM(self) -> str:  # noqa: N802, a constant in the other networks
        """The first layer, whose weights tell the input's width."""
        return "hidden1" if self.hidden else "fc"

    def __post_init__(self):
        widths = self.hidden
        if not isinstance(widths, tuple | list) or not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"mlp: hidden must be a tuple of positive widths, such as (512, 512), not {widths!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits [batch, classes], features hidden1, hidden2, ... (after ReLU) and the last one as pooled.

        Args:
          images: [batch, ...], floating.
          train: makes no difference here.
        """
        del train
        x = images.reshape(images.shape[0], -1)
        features = {}
        for i, width in enumerate(self.hidden, start=1):
            preact = nn.Dense(width, dtype=self.dtype, name=f"hidden{i}")(x)
            x = nn.relu(preact)
            features |= {f"hidden{i}": x, f"hidden{i}_preact": preact}
        head_dtype = None if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)
        logits = nn.Dense(self.num_classes, dtype=head_dtype, name="fc")(x)
        return ModelOutput(logits, features, x)
