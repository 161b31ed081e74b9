"""One way to call any network, kdjax's or a user's: arguments, outputs and BatchNorm over all devices."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util

from kdjax.errors import UserError
from kdjax.types import Array, ModelOutput


def call(
    module: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    *,
    train: bool,
    axis_name: str | None = None,
    rngs: Mapping[str, Array] | None = None,
) -> tuple[ModelOutput, Any]:
    """Applies a network and returns its output with the batch statistics after the call.

    Args:
      module: a network that takes `(images)` or `(images, train=bool)` and returns logits or a ModelOutput.
      variables: {'params': ..., 'batch_stats': ...}, the latter may be empty or missing.
      images: [batch, ...], floating.
      train: updates the running statistics, and is handed to a network that takes it.
      axis_name: a mapped axis over which every flax BatchNorm inside takes its batch statistics, except one that names
        an axis itself; None leaves them to each device's share of the batch. Used in training only.
      rngs: random keys by stream, such as {'dropout': key}.

    Returns:
      The output, its logits float32 at least, and the new batch statistics (the old ones in evaluation).

    Raises:
      UserError: a network that cannot be called like this, or whose output is neither logits nor a ModelOutput.
    """
    batch_stats = variables.get("batch_stats", {})
    mutable = ["batch_stats"] if train else False
    try:
        with nn.intercept_methods(_over_axis(axis_name if train else None)):
            result = module.apply(variables, images, rngs=rngs, mutable=mutable, **train_argument(module, train))
    except errors.ModifyScopeVariableError as error:
        raise UserError(
            f"model {type(module).__name__} updates its statistics in evaluation too: let its __call__ take `train` "
            "and give BatchNorm use_running_average=not train."
        ) from error
    except errors.InvalidRngError as error:
        raise UserError(
            f"model {type(module).__name__} asks for random keys that it is not given: let its __call__ take `train`, "
            "and draw in training only, from the stream 'dropout'."
        ) from error
    output, updates = result if train else (result, {})
    return _as_output(module, output, images), updates.get("batch_stats", batch_stats)


def train_argument(module: nn.Module, train: bool) -> dict[str, bool]:
    """Returns {'train': train} for a network whose call takes it, else {}."""
    parameters = inspect.signature(type(module).__call__).parameters
    takes = "train" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {"train": train} if takes else {}


def _over_axis(axis_name: str | None) -> Callable:
    """Makes an interceptor for `nn.intercept_methods`, which hands `axis_name` to every BatchNorm that has none."""

    def interceptor(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if axis_name is None or not _is_batch_norm_call(context) or module.axis_name is not None:
            return call_next(*args, **kwargs)
        # A module is frozen: its twin with the axis name, bound to the same variables, takes the call.
        return module.clone(parent=module.scope, axis_name=axis_name)(*args, **kwargs)

    return interceptor


def _is_batch_norm_call(context: Any) -> bool:
    return isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__"


def _as_output(module: nn.Module, output: Any, images: Array) -> ModelOutput:
    name = type(module).__name__
    if not isinstance(output, ModelOutput):
        if not hasattr(output, "dtype"):
            kind = type(output).__name__
            raise UserError(f"model {name} must return logits or a kdjax.types.ModelOutput, not a {kind}.")
        output = ModelOutput(output)
    shape, classes = jnp.shape(output.logits), getattr(module, "num_classes", None)
    if len(shape) != 2 or shape[0] != images.shape[0] or classes not in (None, shape[1]):
        raise UserError(f"model {name} returned logits {shape} for {images.shape[0]} images and {classes} classes.")
    return output._replace(logits=output.logits.astype(jnp.promote_types(output.logits.dtype, jnp.float32)))


def batch_norm_scope(module: nn.Module, input_shape: Sequence[int]) -> str:
    """Tells over what a network's batch statistics are taken when `call` is given an axis name.

    Args:
      module: the network, not bound.
      input_shape: of a batch of images, the batch axis included.

    Returns:
      'none': it keeps no batch statistics; 'global': flax's BatchNorm keeps them all, so they are taken over the
      global batch; 'per_device': another layer keeps some, which `call` cannot reach.
    """
    found = set()

    def note(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if _is_batch_norm_call(context):
            found.add(tuple(context.module.path))
        return call_next(*args, **kwargs)

    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(module.init, **train_argument(module, False))
    with nn.intercept_methods(note):
        variables = jax.eval_shape(init, jax.random.key(0), images)
    layers = {path[:-1] for path in traverse_util.flatten_dict(variables.get("batch_stats", {}))}
    if not layers:
        return "none"
    return "global" if layers <= found else "per_device"
