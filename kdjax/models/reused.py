"""A student that ends in a projector and its teacher's classifier, for SimKD.

Reference: Chen, Mei, Zhang, Wang, Feng & Chen, 2022, "Knowledge Distillation with the Reused Teacher Classifier",
https://arxiv.org/abs/2203.14001
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.losses import adaptive_avg_pool
from kdjax.models.apply import call_arguments
from kdjax.models.initialize import TORCH_INITIALIZERS
from kdjax.models.layers import batch_norm, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

PATHS = {"paths": ((r"(.*)", lambda path: path.replace("/", ".")),)}  # names of a network without PyTorch names


class ReusedClassifier(nn.Module):
    """A network without its classifier, three convolutions to a teacher's last map, and that teacher's classifier.

    The projector is a part of the network: it is trained, evaluated, exported and deployed with it. The classifier is
    the teacher's and is never trained. A run fills it in, and takes width and size from the teacher.

    Initialisation by `init_variables`: the network's own, and PyTorch's defaults for projector and classifier.

    Attributes:
      num_classes: Number of classes.
      network: The network; its classifier is left out.
      width: Channels of the teacher's last map.
      size: Side of the teacher's last map; a larger map of the network is averaged down to it. 0 leaves it as it is.
      factor: The projector's inner width is `width` divided by this.
      dtype: Type of the body's computation; None takes that of parameters and images.
    """

    num_classes: int
    network: nn.Module
    width: int
    size: int = 0
    factor: int = 2
    dtype: DTypeLike | None = None

    FROZEN = ("fc",)

    def __post_init__(self):
        if self.width < 1 or self.size < 0 or self.factor < 1 or self.width < self.factor:
            raise UserError(
                f"simkd: width {self.width} must be at least factor {self.factor}, which is at least 1; a student in "
                "training takes width and size from its teacher."
            )
        super().__post_init__()

    @property
    def INITIALIZERS(self) -> tuple | None:  # noqa: N802, a table as in the other networks
        """Initial values of the network under its name here; None where it has no table."""
        table = getattr(self.network, "INITIALIZERS", None)
        return table and (*((rf"body/(?:{pattern})", draw) for pattern, draw in table), *TORCH_INITIALIZERS)

    @property
    def TORCH_NAMES(self) -> dict[str, tuple]:  # noqa: N802, a table as in the other networks
        """PyTorch's names: those of the network after 'backbone.', then the projector's and the classifier's."""
        own = (
            (r"projector_(conv|bn)(\d)", lambda layer, number: f"projector.{layer}{number}"),
            (r"fc", "fc"),
        )
        return {
            dialect: (*((rf"body/(?:{pattern})", _backbone(name)) for pattern, name in rules), *own)
            for dialect, rules in getattr(self.network, "TORCH_NAMES", PATHS).items()
        }

    @property
    def STEM(self) -> str:  # noqa: N802, a name as in the other networks
        """Path of the first layer."""
        return f"body/{getattr(self.network, 'STEM', 'stem')}"

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
        typed: dict[str, Any] = {"dtype": self.dtype} if hasattr(self.network, "dtype") else {}
        body = self.network.clone(parent=self, name="body", **typed)
        with nn.intercept_methods(_without(f"body/{getattr(self.network, 'HEAD', 'fc')}")):
            output = body(images, **call_arguments(self.network, train, keys))
        features = output.features if isinstance(output, ModelOutput) else {}
        maps = [name for name, leaf in features.items() if leaf.ndim == 4 and not name.endswith("_preact")]
        if not maps:
            raise UserError(f"simkd projects a network's last map, and {type(self.network).__name__} returns no map.")
        last = features.get(f"{maps[-1]}_preact")  # with the last BatchNorm, which the sum in a map of WRN has not had
        preact = self._project(features[maps[-1]] if last is None else nn.relu(last), train)
        projected = nn.relu(preact)
        pooled = spatial_mean(projected)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, {**features, "projected": projected, "projected_preact": preact}, pooled)

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
        own = self.network.preact_norms() if hasattr(self.network, "preact_norms") else {}
        return {**{stage: f"body/{path}" for stage, path in own.items()}, "projected": "projector_bn3"}


def _without(path: str) -> Callable:
    """Returns an interceptor for `nn.intercept_methods` that leaves one layer out, so that it has no parameters."""

    def leave_out(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        leaves = context.method_name == "__call__" and "/".join(context.module.path) == path
        return args[0] if leaves else call_next(*args, **kwargs)

    return leave_out


def _backbone(name: str | Callable[..., str]) -> Callable[..., str]:
    """Returns a rule of TORCH_NAMES with 'backbone.' before the name."""
    return lambda *groups: "backbone." + (name if isinstance(name, str) else name(*groups))
