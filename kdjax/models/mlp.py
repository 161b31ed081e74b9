"""Multi-layer perceptrons, for vectors and small images."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import torch_linear
from kdjax.types import Array, ModelOutput


class MLP(nn.Module):
    """Dense layers with ReLU on the flattened input, then a linear classifier.

    Initialisation by `init_variables`: all weights and biases uniform in ±1/√fan_in, PyTorch's default; flax's own
    `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      hidden: Widths of the hidden layers; () is a linear classifier.
      dtype: Type of the hidden layers' computation; None takes that of parameters and images.
    """

    num_classes: int
    hidden: Sequence[int] = (512, 512)
    dtype: DTypeLike | None = None

    INITIALIZERS = ((r"(hidden\d+|fc)/(kernel|bias)", torch_linear),)
    FLATTENS = True  # images, as [height, width, channels]: import and export reorder them for PyTorch
    TORCH_NAMES = {"kdjax": ((r"(hidden\d+|fc)", lambda layer: layer),)}

    @property
    def STEM(self) -> str:  # noqa: N802, a constant in the other networks
        """Name of the first layer, whose weights have the input's width."""
        return "hidden1" if self.hidden else "fc"

    def __post_init__(self):
        widths = self.hidden
        if not isinstance(widths, tuple | list) or not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"mlp: hidden must be a tuple of positive widths, such as (512, 512), not {widths!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the outputs of the hidden layers, and the last of them as the pooled vector.

        Args:
          images: Images or vectors [batch, ...], floating-point.
          train: Has no effect in this network.

        Returns:
          logits [batch, classes]; features hidden1, hidden2, ... [batch, width] after ReLU, and before it as
          hidden1_preact, ...; pooled [batch, width], the last hidden layer (the flattened input if there is none).
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
