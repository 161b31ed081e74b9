"""One way to call any network, kdjax's or a user's: arguments, outputs, features and BatchNorm over all devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util

from kdjax.arguments import Signature, select_arguments, signature_of
from kdjax.errors import UserError, nearest
from kdjax.models.pick import INTERMEDIATES, Picked, available, capture_filter, pick_features
from kdjax.types import Array, ModelOutput


def call(
    module: nn.Module | Picked,
    variables: Mapping[str, Any],
    images: Array,
    *,
    train: bool,
    axis_name: str | None = None,
    rngs: Mapping[str, Array] | None = None,
    keys: Array | None = None,
    unbiased: bool = False,
) -> tuple[ModelOutput, Any]:
    """Applies a network and returns its output with the batch statistics after the call.

    Args:
      module: a network that takes `(images)` or `(images, train=bool)` and returns logits or a ModelOutput; or one
        whose features a config picks.
      variables: {'params': ..., 'batch_stats': ...}, the latter may be empty or missing.
      images: [batch, ...], floating.
      train: updates the running statistics, and is handed to a network that takes it.
      axis_name: a mapped axis over which every flax BatchNorm inside takes its batch statistics, except one that names
        an axis itself; None leaves them to each device's share of the batch. Used in training only.
      rngs: random keys by stream, such as {'dropout': key}.
      keys: [batch] random keys, one an example, for a network whose call takes `keys` (drop-path).
      unbiased: whether BatchNorm's running variance averages n / (n - 1) times the batch's, n the elements reduced, as
        PyTorch does; flax averages the batch's own.

    Returns:
      The output, its logits float32 at least, and the new batch statistics (the old ones in evaluation).

    Raises:
      UserError: a network that cannot be called like this, or whose output is neither logits nor a ModelOutput.
    """
    picked, module = (module, module.module) if isinstance(module, Picked) else (Picked(module), module)
    batch_stats = variables.get("batch_stats", {})
    mutable = [*(["batch_stats"] if train else []), *([INTERMEDIATES] if picked.features else [])]
    arguments = {**call_arguments(module, train, keys), "capture_intermediates": capture_filter(picked)}
    try:
        with nn.intercept_methods(batch_statistics(axis_name, unbiased, train)):
            result = module.apply(variables, images, rngs=rngs, mutable=mutable or False, **arguments)
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
    output, updates = result if mutable else (result, {})
    output = pick_features(picked, _as_output(module, output, images), updates)
    return output, updates.get("batch_stats", batch_stats)


def call_arguments(module: nn.Module, train: bool, keys: Array | None = None) -> dict[str, Any]:
    """Returns those of `train` and `keys` that a network's call takes, by name."""
    takes = _call_signature(type(module))
    arguments = {"train": train} if takes.takes_any else {}
    return arguments | select_arguments(takes, {"train": train, "keys": keys})


@functools.lru_cache(maxsize=256)
def _call_signature(module: type[nn.Module]) -> Signature:
    return signature_of(module.__call__)


def batch_statistics(axis_name: str | None, unbiased: bool, train: bool) -> Callable:
    """Makes an interceptor for `nn.intercept_methods` that settles what every flax BatchNorm inside takes and keeps.

    Args:
      axis_name: handed to each that names no axis itself.
      unbiased: whether running variances are PyTorch's.
      train: False leaves all as it is.
    """

    def interceptor(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if not train or not _is_batch_norm_call(context):
            return call_next(*args, **kwargs)
        module = context.module
        if axis_name is not None and module.axis_name is None:
            # A module is frozen: its twin with the axis name, bound to the same variables, takes the call (and comes
            # by here itself).
            return module.clone(parent=module.scope, axis_name=axis_name)(*args, **kwargs)
        before = module.get_variable("batch_stats", "var") if unbiased else None
        result = call_next(*args, **kwargs)
        if unbiased:
            _correct_variance(module, args[0], before)
        return result

    return interceptor


def _correct_variance(module: nn.BatchNorm, x: Array, before: Array) -> None:
    """Turns the running variance m before + (1 - m) v that flax has just written into one of n / (n - 1) v."""
    after = module.get_variable("batch_stats", "var")
    if after is before:  # the layer ran on its running statistics
        return
    count = x.size // before.size
    if module.axis_name is not None:
        count = count * jax.lax.psum(1, module.axis_name)
    kept = module.momentum * before
    module.put_variable("batch_stats", "var", kept + (after - kept) * (count / max(count - 1, 1)))


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


def batch_norm_scope(module: nn.Module | Picked, input_shape: Sequence[int]) -> str:
    """Tells over what a network's batch statistics are taken when `call` is given an axis name.

    Args:
      module: the network, not bound.
      input_shape: of a batch of images, the batch axis included.

    Returns:
      'none': it keeps no batch statistics; 'global': flax's BatchNorm keeps them all, so they are taken over the
      global batch; 'per_device': another layer keeps some, which `call` cannot reach.
    """
    module = module.module if isinstance(module, Picked) else module
    found = set()

    def note(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if _is_batch_norm_call(context):
            found.add(tuple(context.module.path))
        return call_next(*args, **kwargs)

    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(module.init, **call_arguments(module, False))
    with nn.intercept_methods(note):
        variables = jax.eval_shape(init, jax.random.key(0), images)
    layers = {path[:-1] for path in traverse_util.flatten_dict(variables.get("batch_stats", {}))}
    if not layers:
        return "none"
    return "global" if layers <= found else "per_device"


def feature_shapes(module: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Returns the shapes of what a network offers as features, computing nothing.

    Args:
      module: the network, not bound.
      input_shape: of a batch of images, the batch axis included.

    Returns:
      name -> shape of its own features, and path -> shape of its submodules' outputs and sown values; in the order in
      which the network makes them, batch included.
    """
    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(
        module.init_with_output, mutable=True, capture_intermediates=True, **call_arguments(module, False)
    )
    traced = []  # not what eval_shape returns: its mappings are in the order of their keys, not of depth
    jax.eval_shape(lambda *args: traced.append(init(*args)), jax.random.key(0), images)
    output, variables = traced[0]
    own = output.features if isinstance(output, ModelOutput) else {}
    inner = {path: leaf.shape for path, leaf in available(variables).items() if path}
    return {name: leaf.shape for name, leaf in own.items()}, inner


def check_features(module: nn.Module | Picked, input_shape: Sequence[int]) -> None:
    """Refuses names of features that a network does not have, with the names that it has.

    Raises:
      UserError: config.model.features or config.model.pooled name what is not there.
    """
    if not isinstance(module, Picked) or not module.features:
        return
    own, inner = feature_shapes(module.module, input_shape)
    for name in (*module.features, *([module.pooled] if module.pooled else [])):
        if name not in own and name not in inner:
            there = ", ".join([*own, *(path for path, shape in inner.items() if len(shape) > 1)])
            hint = nearest(name, [*own, *inner])
            hint = hint if "mean" in hint else ""
            raise UserError(
                f"model {type(module.module).__name__} has no feature '{name}' (config.model.features).{hint} "
                f"There are: {there}."
            )
