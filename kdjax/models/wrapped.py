"""What networks around another network share: its tables under a new path, and a view into its layers."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from kdjax.models.apply import call_arguments
from kdjax.models.initialize import TORCH_INITIALIZERS
from kdjax.types import Array, ModelOutput

PATHS = {"paths": ((r"(.*)", lambda path: path.replace("/", ".")),)}  # names of a network without PyTorch names


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


def initializers(network: nn.Module, prefix: str) -> tuple | None:
    """Returns a network's table INITIALIZERS under another path, then PyTorch's defaults; None where it has none.

    Args:
      network: The network.
      prefix: Pattern of the path that is put before those of the table.
    """
    table = getattr(network, "INITIALIZERS", None)
    return table and (*((rf"{prefix}/(?:{pattern})", draw) for pattern, draw in table), *TORCH_INITIALIZERS)


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


def norms(network: nn.Module) -> dict[str, str]:
    """Returns what a network's `preact_norms` returns, for the path 'body'; {} where it has no such method."""
    own: Mapping[str, str] = network.preact_norms() if hasattr(network, "preact_norms") else {}
    return {stage: f"body/{path}" for stage, path in own.items()}


def path_in_body(network: nn.Module, table: str, default: str) -> str:
    """Returns the path of the layer that a network's attribute names, under the path 'body'."""
    return f"body/{getattr(network, table, default)}"
