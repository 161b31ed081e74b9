"""Calls any network, kdjax's or a user's: its arguments, its output, its features, and BatchNorm over all devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util

from kdjax.arguments import Signature, select_arguments, signature_of
from kdjax.errors import UserError, nearest
from kdjax.models.feature_extraction import (
    INTERMEDIATES,
    FeatureExtractor,
    capture_filter,
    captured_arrays,
    extract_features,
)
from kdjax.types import Array, ModelOutput

FOLDED = "folded"  # collection of what is left to add of each BatchNorm that kdjax.models.fold has folded


def call(
    module: nn.Module | FeatureExtractor,
    variables: Mapping[str, Any],
    images: Array,
    *,
    train: bool,
    axis_name: str | None = None,
    rngs: dict[str, Array] | None = None,
    keys: Array | None = None,
    unbiased: bool = False,
) -> tuple[ModelOutput, Any]:
    """Applies a network and returns its output and the batch statistics after the call.

    Args:
      module: Network that takes `(images)` or `(images, train=bool)` and returns logits or a ModelOutput; or a feature
        extractor of such a network.
      variables: {'params': ..., 'batch_stats': ...}; batch_stats may be empty or missing. Those that `fold` has made
        ready are for evaluation only.
      images: Images [batch, ...], floating-point.
      train: Whether this is training: running statistics are updated, and `train` is passed to a network that takes it.
      axis_name: Name of a mapped axis over which every flax BatchNorm in the network takes its batch statistics, unless
        the layer names an axis itself. None takes them over each device's share of the batch. Used in training only.
      rngs: Random keys by stream, such as {'dropout': key}.
      keys: Random keys [batch], one for each example, for a network whose call takes `keys` (drop-path).
      unbiased: Whether BatchNorm's running variance averages n / (n - 1) times the batch's variance over n elements, as
        PyTorch's does. flax's averages the batch's variance itself.

    Returns:
      The output, whose logits are float32 or wider, and the batch statistics: new in training, unchanged in evaluation.

    Raises:
      UserError: The network cannot be called in this way, or returns neither logits nor a ModelOutput.
    """
    extractor = module if isinstance(module, FeatureExtractor) else FeatureExtractor(module)
    module = extractor.module
    batch_stats = variables.get("batch_stats", {})
    mutable = [*(["batch_stats"] if train else []), *([INTERMEDIATES] if extractor.features else [])]
    arguments = {**call_arguments(module, train, keys), "capture_intermediates": capture_filter(extractor)}
    try:
        norms = _add_shift if FOLDED in variables else batch_statistics(axis_name, unbiased, train)
        with nn.intercept_methods(norms):
            result = module.apply(variables, images, rngs=rngs, mutable=mutable or False, **arguments)
    except errors.ModifyScopeVariableError as error:
        raise UserError(
            f"model {type(module).__name__} updates its statistics in evaluation too; let its __call__ take `train` "
            "and give BatchNorm use_running_average=not train."
        ) from error
    except errors.InvalidRngError as error:
        raise UserError(
            f"model {type(module).__name__} asks for random keys that kdjax does not pass; let its __call__ take "
            "`train` and draw in training only, from the stream 'dropout'."
        ) from error
    output, updates = result if mutable else (result, {})
    output = extract_features(extractor, _as_output(module, output, images), updates)
    return output, updates.get("batch_stats", batch_stats)


def call_arguments(module: nn.Module, train: bool, keys: Array | None = None) -> dict[str, Any]:
    """Returns those of the arguments `train` and `keys` that the network's call takes, by name."""
    takes = _call_signature(_called(module))
    arguments = {"train": train} if takes.takes_any else {}
    return arguments | select_arguments(takes, {"train": train, "keys": keys})


def init_keys(seed: int) -> dict[str, Array]:
    """Returns the random keys by stream that a network's `init` is given: nnx networks ask for all of theirs then."""
    key = jax.random.key(seed)
    return {"params": key, "dropout": key}


def _called(module: Any) -> Callable:
    """Returns what takes a network's arguments in the end: some modules of flax take anything and pass it on."""
    if isinstance(module, nn.Sequential):
        return _called(module.layers[0])
    wrapped = getattr(module, "nnx_class", None)  # of flax.nnx.bridge.ToLinen
    if isinstance(wrapped, type):
        return wrapped.__call__
    return type(module).__call__ if isinstance(module, nn.Module) else module


@functools.lru_cache(maxsize=256)
def _call_signature(called: Callable) -> Signature:
    return signature_of(called)


def batch_statistics(axis_name: str | None, unbiased: bool, train: bool) -> Callable:
    """Returns an interceptor for `nn.intercept_methods` that changes how every flax BatchNorm takes its statistics.

    Args:
      axis_name: Name of the mapped axis over which a BatchNorm that names no axis itself takes its statistics.
      unbiased: Whether running variances are averaged as PyTorch does; see `call`.
      train: Whether this is training; if False, nothing is changed.
    """

    def interceptor(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if not train or not _is_batch_norm_call(context):
            return call_next(*args, **kwargs)
        module = context.module
        if axis_name is not None and module.axis_name is None:
            # A flax module cannot be changed. A clone with the axis name, bound to the same variables, is called in
            # its place, and that call is intercepted too.
            return module.clone(parent=module.scope, axis_name=axis_name)(*args, **kwargs)
        if module.dtype is not None and args[0].dtype == jnp.bfloat16 and module.force_float32_reductions:
            # flax casts the input once for the statistics and once more to normalise it, and both casts back for the
            # gradient. Cast here, it is read once, and its gradient is summed in float32.
            args = (args[0].astype(jnp.float32), *args[1:])
        before = module.get_variable("batch_stats", "var") if unbiased else None
        result = call_next(*args, **kwargs)
        if unbiased:
            _correct_variance(module, args[0], before)
        return result

    return interceptor


def _add_shift(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Interceptor that replaces each folded BatchNorm by the addition that is left of it."""
    module = context.module
    if _is_batch_norm_call(context) and module.has_variable(FOLDED, "shift"):
        return args[0] + module.get_variable(FOLDED, "shift")
    return call_next(*args, **kwargs)


def _correct_variance(module: nn.BatchNorm, x: Array, before: Array) -> None:
    """Replaces the running variance m before + (1 - m) v, which flax has just written, by that of n / (n - 1) v."""
    after = module.get_variable("batch_stats", "var")
    if after is before:  # the layer normalised by its running statistics and did not update them
        return
    count = x.size // before.size
    if module.axis_name is not None:
        count = count * jax.lax.psum(1, module.axis_name)
    old_part = module.momentum * before
    module.put_variable("batch_stats", "var", old_part + (after - old_part) * (count / max(count - 1, 1)))


def _is_batch_norm_call(context: Any) -> bool:
    return isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__"


def _as_output(module: nn.Module, output: Any, images: Array) -> ModelOutput:
    """Returns a network's output as a ModelOutput with checked logits [batch, classes] in float32 or wider."""
    name = type(module).__name__
    if not isinstance(output, ModelOutput):
        if not hasattr(output, "dtype"):
            kind = type(output).__name__
            raise UserError(f"model {name} must return logits or a kdjax.types.ModelOutput, not a {kind}.")
        output = ModelOutput(output)
    shape, classes = jnp.shape(output.logits), getattr(module, "num_classes", None)
    if len(shape) != 2 or shape[0] != images.shape[0] or classes not in (None, shape[1]):
        raise UserError(
            f"model {name} returned logits {shape} for {images.shape[0]} images and {classes} classes; a network must "
            "make one prediction an example, logits [batch, classes]."
        )
    if not jnp.issubdtype(output.logits.dtype, jnp.floating):
        kind = output.logits.dtype
        raise UserError(
            f"model {name} returned logits of type {kind}; a network must return floats, which have gradients."
        )
    return output._replace(logits=output.logits.astype(jnp.promote_types(output.logits.dtype, jnp.float32)))


@functools.lru_cache(maxsize=64)  # a run asks when it chooses its devices, and for its manifest
def batch_norm_scope(module: nn.Module | FeatureExtractor, input_shape: tuple[int, ...]) -> str:
    """Returns over which examples a network's batch statistics are taken if `call` is given an axis name.

    Args:
      module: Network, not bound to variables.
      input_shape: Shape of a batch of images, batch axis included.

    Returns:
      'none' if the network has no batch statistics; 'global' if all of them belong to flax's BatchNorm layers, which
      take them over the global batch; 'per_device' if another layer has some, which `call` cannot change.
    """
    module = module.module if isinstance(module, FeatureExtractor) else module
    found = set()

    def note(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if _is_batch_norm_call(context):
            found.add(tuple(context.module.path))
        return call_next(*args, **kwargs)

    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(module.init, **call_arguments(module, False))
    with nn.intercept_methods(note):
        variables = jax.eval_shape(init, init_keys(0), images)
    layers = {path[:-1] for path in traverse_util.flatten_dict(variables.get("batch_stats", {}))}
    if not layers:
        return "none"
    return "global" if layers <= found else "per_device"


def check_classes(
    module: nn.Module | FeatureExtractor, variables: Mapping[str, Any], input_shape: Sequence[int], num_classes: int
) -> None:
    """Refuses a network whose logits are not one for each class of the data.

    Args:
      module: Network, or a feature extractor.
      variables: Its variables.
      input_shape: Shape of a batch of images, batch axis included.
      num_classes: Number of classes of the data.

    Raises:
      UserError: It has more or fewer. A network that has the field num_classes is checked whenever it is called.
    """
    inner = module.module if isinstance(module, FeatureExtractor) else module
    if hasattr(inner, "num_classes"):
        return
    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    output = jax.eval_shape(functools.partial(call, inner, train=False), variables, images)[0]
    if output.logits.shape[-1] != num_classes:
        raise UserError(
            f"model {type(inner).__name__} returns {output.logits.shape[-1]} logits, and the data has {num_classes} "
            "classes."
        )


def feature_shapes(module: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Returns the shapes of all features that a network offers, without computing anything.

    Args:
      module: Network, not bound to variables.
      input_shape: Shape of a batch of images, batch axis included.

    Returns:
      Shapes of the network's own features by name, and shapes of its submodules' outputs and sown values by path. Both
      are in the order in which the network computes them, and include the batch axis.
    """
    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    init = functools.partial(
        module.init_with_output, mutable=True, capture_intermediates=True, **call_arguments(module, False)
    )
    # eval_shape returns mappings sorted by key. The output is stored while tracing, in the order of computation.
    traced = []
    jax.eval_shape(lambda *args: traced.append(init(*args)), init_keys(0), images)
    output, variables = traced[0]
    own = output.features if isinstance(output, ModelOutput) else {}
    inner = {path: leaf.shape for path, leaf in captured_arrays(variables).items() if path}
    return {name: leaf.shape for name, leaf in own.items()}, inner


def check_features(module: nn.Module | FeatureExtractor, input_shape: Sequence[int]) -> None:
    """Refuses a feature that a config names and the network does not have.

    Args:
      module: Network, or a feature extractor.
      input_shape: Shape of a batch of images, batch axis included.

    Raises:
      UserError: config.model.features or config.model.pooled has an unknown name. The message lists the known ones.
    """
    if not isinstance(module, FeatureExtractor) or not module.features:
        return
    own, inner = feature_shapes(module.module, input_shape)
    for name in (*module.features, *([module.pooled] if module.pooled else [])):
        if name not in own and name not in inner:
            known = ", ".join([*own, *(path for path, shape in inner.items() if len(shape) > 1)])
            hint = nearest(name, [*own, *inner])
            hint = hint if "mean" in hint else ""
            raise UserError(
                f"model {type(module.module).__name__} has no feature '{name}' (config.model.features).{hint} "
                f"There are: {known}."
            )
