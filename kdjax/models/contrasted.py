"""Any network with a second head that embeds rotated images, for SSKD.

Reference: Xu, Liu, Li & Loy, 2020, "Knowledge Distillation Meets Self-Supervision", https://arxiv.org/abs/2006.07114
"""

import flax.linen as nn
import jax.numpy as jnp

from kdjax.errors import UserError
from kdjax.models import wrapped
from kdjax.models.auxiliary import ROTATIONS, by_example, of_rotation
from kdjax.models.layers import check_images
from kdjax.types import Array, ModelOutput


class Projection(nn.Module):
    """Two linear layers of the width of their input with a ReLU between them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the embeddings [batch, dim] of vectors [batch, dim]."""
        return nn.Dense(x.shape[-1], name="linear2")(nn.relu(nn.Dense(x.shape[-1], name="linear1")(x)))


class ContrastedNetwork(wrapped.Wrapper):
    """A network, and a projection of the vector that its classifier reads, of the four rotations of each image.

    Fields and initialisation are those of every Wrapper.
    """

    @property
    def TORCH_NAMES(self) -> dict[str, tuple]:  # noqa: N802, a table as in the other networks
        """PyTorch's names: those of the network after 'backbone.', then the projection's."""
        return wrapped.torch_names(self.network, ((r"projection/linear(\d)", lambda i: f"proj_head.{2 * i - 2}"),))

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns the network's output on the images as they are, with what it makes of rotated images as features.

        In training the four rotations of a batch are one batch, since batch statistics are taken over all of them; in
        evaluation they follow one another, so that XLA can leave out those whose output is not used.

        Args:
          images: Images [batch, height, width, channels], floating-point, square.
          train: Whether to normalise by the statistics of all four rotations instead of the running ones.

        Returns:
          The network's logits, features and pooled vector. Further features are `rotated` [batch, 4, classes], the
          logits of each rotation, and `views` [batch, 4, dim], their embeddings.

        Raises:
          UserError: The images are vectors, or the network has no pooled vector.
        """
        check_images(images, "a network for sskd")
        body, projection = self.bound_network(), Projection(name="projection")
        rotations = [jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)]
        if train:
            together = wrapped.output_of(body, jnp.concatenate(rotations), train)
            outputs = [of_rotation(together, i, images.shape[0]) for i in range(ROTATIONS)]
            views = by_example(projection(self._pooled(together)))
        else:
            outputs = [wrapped.output_of(body, rotation, train) for rotation in rotations]
            views = jnp.stack([projection(self._pooled(output)) for output in outputs], axis=1)
        rotated = jnp.stack([output.logits for output in outputs], axis=1)
        upright = outputs[0]
        return upright._replace(features={**upright.features, "rotated": rotated, "views": views})

    def _pooled(self, output: ModelOutput) -> Array:
        if output.pooled is None:
            name = type(self.network).__name__
            raise UserError(f"sskd embeds the vector that a network's classifier reads, and {name} returns none.")
        return output.pooled
