"""What networks around another network share: its fields, its tables under a new path, and a view into its layers."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.models.apply import call_arguments
from kdjax.models.initialize import TORCH_INITIALIZERS
from kdjax.types import Array, ModelOutput

PATHS = {"paths": ((r"(.*)", lambda path: path.replace("/", ".")),)}  # names of a network without PyTorch names


class Wrapper(nn.Module):
    """The base class of networks around another one, which is their submodule 'body'.

    Initialisation by `init_variables`: the inner network's own, and PyTorch's defaults for the layers around it.

    Attributes:
      num_classes: Number of classes.
      network: The inner network.
      dtype: Type of the inner network's computation; None takes that of parameters and images.
    """

    num_classes: int
    network: nn.Module
    dtype: DTypeLike | None = None

    @property
    def INITIALIZERS(self) -> tuple | None:  # noqa: N802, a table as in the other networks
        """Initial values of the inner network under its path here; None where it has no table."""
        return initializers((self.network, "body"))

    @property
    def HEAD(self) -> str:  # noqa: N802, a name as in the other networks
        """Path of the classifier."""
        return path_in_body(self.network, "HEAD", "fc")

    @property
    def STEM(self) -> str:  # noqa: N802, a name as in the other networks
        """Path of the first layer."""
        return path_in_body(self.network, "STEM", "stem")

    def bound_network(self) -> nn.Module:
        """Returns the inner network as a submodule; to be called within a compact method."""
        return bound(self, self.network, "body")

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU; {} where that is not known."""
        own: Mapping[str, str] = self.network.preact_norms() if hasattr(self.network, "preact_norms") else {}
        return {stage: f"body/{path}" for stage, path in own.items()}


def bound(parent: nn.Module, network: nn.Module, name: str, **changed: Any) -> nn.Module:
    """Returns a network as a submodule of another one, which computes in the other one's type.

    Args:
      parent: The module around it, which has a field `dtype`.
      network: The network, not bound.
      name: Its name in the parent.
      **changed: Fields of the network to change.
    """
    typed = {"dtype": parent.dtype} if hasattr(network, "dtype") else {}  # pyright: ignore[reportAttributeAccessIssue]
    return network.clone(parent=parent, name=name, **typed, **changed)


def output_of(network: nn.Module, images: Array, train: bool, keys: Array | None = None) -> ModelOutput:
    """Calls a bound network with the arguments that it takes."""
    output = network(images, **call_arguments(network, train, keys))
    return output if isinstance(output, ModelOutput) else ModelOutput(output)


def maps_of(output: ModelOutput) -> list[str]:
    """Returns the names of a network's maps by depth, without those before a ReLU and without the stem's."""
    names = (name for name, leaf in output.features.items() if leaf.ndim == 4 and not name.endswith("_preact"))
    return [name for name in names if name != "stem"]


def classified(output: ModelOutput, name: str) -> Array:
    """Returns the last map as the classifier reads it: the sum in a map of WRN has not had the last BatchNorm.

    A network with one more convolution after its last stage offers that as 'final_preact'.
    """
    preact = output.features.get("final_preact", output.features.get(f"{name}_preact"))
    return output.features[name] if preact is None else nn.relu(preact)


def initializers(*parts: tuple[nn.Module, str]) -> tuple | None:
    """Returns the tables INITIALIZERS of networks under other paths, then PyTorch's defaults; None if one has none.

    Args:
      *parts: Networks, each with the pattern of the path that is put before those of its table.
    """
    tables = [(getattr(network, "INITIALIZERS", None), prefix) for network, prefix in parts]
    if any(table is None for table, _ in tables):
        return None
    own = [(rf"{prefix}/(?:{pattern})", draw) for table, prefix in tables for pattern, draw in table or ()]
    return (*own, *TORCH_INITIALIZERS)


def torch_names(network: nn.Module, own: tuple) -> dict[str, tuple]:
    """Returns a network's table TORCH_NAMES for the path 'body', with 'backbone.' before each name.

    Args:
      network: The network.
      own: Rules for the layers around it.
    """
    return {
        dialect: (*((rf"body/(?:{pattern})", _backbone(name)) for pattern, name in rules), *own)
        for dialect, rules in getattr(network, "TORCH_NAMES", PATHS).items()
    }


def _backbone(name: str | Callable[..., str]) -> Callable[..., str]:
    return lambda *groups: "backbone." + (name if isinstance(name, str) else name(*groups))


def path_in_body(network: nn.Module, table: str, default: str) -> str:
    """Returns the path of the layer that a network's attribute names, under the path 'body'."""
    return f"body/{getattr(network, table, default)}"
