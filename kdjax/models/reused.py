"""A student that ends in a projector and its teacher's classifier, for SimKD.

Reference: Chen, Mei, Zhang, Wang, Feng & Chen, 2022, "Knowledge Distillation with the Reused Teacher Classifier",
https://arxiv.org/abs/2203.14001
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from kdjax.errors import UserError
from kdjax.losses import adaptive_avg_pool
from kdjax.models import wrapped
from kdjax.models.layers import batch_norm, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput


class ReusedClassifier(wrapped.Wrapper):
    """A network without its classifier, three convolutions to a teacher's last map, and that teacher's classifier.

    The projector is a part of the network: it is trained, evaluated, exported and deployed with it. The classifier is
    the teacher's and is never trained. A run fills it in, and takes width and size from the teacher.

    Further fields and the initialisation are those of every Wrapper; the inner network's classifier is left out.

    Attributes:
      width: Channels of the teacher's last map.
      size: Side of the teacher's last map; a larger map of the network is averaged down to it. 0 leaves it as it is.
      factor: The projector's inner width is `width` divided by this.
    """

    width: int = 0
    size: int = 0
    factor: int = 2

    HEAD = "fc"
    FROZEN = ("fc",)

    def __post_init__(self):
        if self.width < 1 or self.size < 0 or self.factor < 1 or self.width < self.factor:
            raise UserError(
                f"simkd: width {self.width} must be at least factor {self.factor}, which is at least 1; a student in "
                "training takes width and size from its teacher."
            )
        super().__post_init__()

    @property
    def TORCH_NAMES(self) -> dict[str, tuple]:  # noqa: N802, a table as in the other networks
        """PyTorch's names: those of the network after 'backbone.', then the projector's and the classifier's."""
        projector = (r"projector_(conv|bn)(\d)", lambda layer, number: f"projector.{layer}{number}")
        return wrapped.torch_names(self.network, (projector, (r"fc", "fc")))

    @nn.compact
    def __call__(self, images: Array, train: bool = False, keys: Array | None = None) -> ModelOutput:
        """Returns the teacher's logits of the projected map, the network's maps, and the mean of the projected map.

        Args:
          images: Images as the network takes them.
          train: Whether to normalise by the batch's statistics instead of the running ones.
          keys: Random keys [batch], for a network that takes them.

        Returns:
          logits [batch, classes]; the network's features, and last projected [batch, height, width, width of the
          teacher] after its ReLU, and before it as projected_preact; pooled [batch, width of the teacher].

        Raises:
          UserError: The network returns no map.
        """
        body = self.bound_network()
        with nn.intercept_methods(_without(wrapped.path_in_body(self.network, "HEAD", "fc"))):
            output = wrapped.output_of(body, images, train, keys)
        maps = wrapped.maps_of(output)
        if not maps:
            raise UserError(f"simkd projects a network's last map, and {type(self.network).__name__} returns no map.")
        preact = self._project(wrapped.classified(output, maps[-1]), train)
        projected = nn.relu(preact)
        pooled = spatial_mean(projected)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, {**output.features, "projected": projected, "projected_preact": preact}, pooled)

    def _project(self, x: Array, train: bool) -> Array:
        """Returns the projected map before its last ReLU."""
        norm, inner = batch_norm(self.dtype, train), self.width // self.factor
        if 0 < self.size < x.shape[1]:
            x = adaptive_avg_pool(x, (self.size, self.size))
        x = conv1x1(inner, dtype=self.dtype, name="projector_conv1")(x)
        x = nn.relu(norm(name="projector_bn1")(x))
        x = conv3x3(inner, dtype=self.dtype, name="projector_conv2")(x)
        x = nn.relu(norm(name="projector_bn2")(x))
        return norm(name="projector_bn3")(conv1x1(self.width, dtype=self.dtype, name="projector_conv3")(x))

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU."""
        return {**super().preact_norms(), "projected": "projector_bn3"}


def _without(path: str) -> Callable:
    """Returns an interceptor for `nn.intercept_methods` that leaves one layer out, so that it has no parameters."""

    def leave_out(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        leaves = context.method_name == "__call__" and "/".join(context.module.path) == path
        return args[0] if leaves else call_next(*args, **kwargs)

    return leave_out
