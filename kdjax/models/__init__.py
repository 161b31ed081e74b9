"""Networks: the table MODELS, and the functions through which other rooms build, initialise and call a network."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.arguments import check_arguments, signature_of
from kdjax.errors import UserError, lookup
from kdjax.models.apply import batch_norm_scope, batch_statistics, call, check_classes, check_features, feature_shapes
from kdjax.models.auxiliary import AuxiliaryResNet
from kdjax.models.branched import BranchedNetwork
from kdjax.models.contrasted import ContrastedNetwork
from kdjax.models.convolution import convolutions_for
from kdjax.models.densenet import DenseNet
from kdjax.models.describe import Description, describe
from kdjax.models.feature_extraction import FeatureExtractor
from kdjax.models.folding import fold
from kdjax.models.initialize import (
    SCHEMES,
    count_parameters,
    draw_variables,
    has_batch_norm,
    init_variables,
    variable_shapes,
)
from kdjax.models.mlp import MLP
from kdjax.models.mobilenet import MobileNetV1, MobileNetV2
from kdjax.models.resnet import CifarResNet
from kdjax.models.resnet_imagenet import ResNet
from kdjax.models.reused import ReusedClassifier
from kdjax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdjax.models.student_friendly import StudentFriendly
from kdjax.models.vgg import VGG
from kdjax.models.vit import VisionTransformer
from kdjax.models.wrn import WideResNet

__all__ = [
    "DTYPES",
    "Description",
    "MODELS",
    "CifarResNet",
    "MLP",
    "FeatureExtractor",
    "SCHEMES",
    "WRAPPERS",
    "batch_norm_scope",
    "batch_statistics",
    "call",
    "check_classes",
    "check_features",
    "convolutions_for",
    "count_parameters",
    "create_model",
    "describe",
    "draw_variables",
    "feature_shapes",
    "fold",
    "has_batch_norm",
    "init_variables",
    "refuse_nnx",
    "variable_shapes",
]


def _reused_classifier(
    num_classes: int,
    body: str,
    body_args: Mapping[str, Any] | None = None,
    width: int = 0,
    size: int = 0,
    factor: int = 2,
    dtype: Any = None,
) -> nn.Module:
    """Builds SimKD's network from the name and the arguments of its body; see ReusedClassifier."""
    return ReusedClassifier(num_classes, _body(num_classes, body, body_args, dtype), dtype, width, size, factor)


def _branched(num_classes: int, body: str, body_args: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
    """Builds HSAKD's network from the name and the arguments of its body; see BranchedNetwork."""
    return BranchedNetwork(num_classes, _body(num_classes, body, body_args, dtype), dtype)


def _contrasted(
    num_classes: int, body: str, body_args: Mapping[str, Any] | None = None, dtype: Any = None
) -> nn.Module:
    """Builds SSKD's network from the name and the arguments of its body; see ContrastedNetwork."""
    return ContrastedNetwork(num_classes, _body(num_classes, body, body_args, dtype), dtype)


def _body(num_classes: int, name: str, args: Mapping[str, Any] | None, dtype: Any) -> nn.Module:
    """Builds the network inside another one."""
    if name in WRAPPERS:
        raise UserError(f"config.model.args.body cannot be {name} itself: name a network.")
    return create_model(name, num_classes, dtype=None if dtype is None else "bfloat16", **(args or {}))


def _student_friendly(
    num_classes: int,
    body: str,
    student: str,
    body_args: Mapping[str, Any] | None = None,
    student_args: Mapping[str, Any] | None = None,
    dtype: Any = None,
) -> nn.Module:
    """Builds SFTN's network from the names and the arguments of its body and of the student; see StudentFriendly."""
    inner, shape = _body(num_classes, body, body_args, dtype), _body(num_classes, student, student_args, dtype)
    return StudentFriendly(num_classes, inner, dtype, shape)


# Name in config.model.name -> constructor, which is called as constructor(num_classes=..., **config.model.args).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "resnet8": partial(CifarResNet, depth=8),
    "resnet14": partial(CifarResNet, depth=14),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "resnet110": partial(CifarResNet, depth=110),
    "resnet8x4": partial(CifarResNet, depth=8, widths=(32, 64, 128, 256)),
    "resnet32x4": partial(CifarResNet, depth=32, widths=(32, 64, 128, 256)),
    "resnet20_aux": partial(AuxiliaryResNet, depth=20),
    "resnet56_aux": partial(AuxiliaryResNet, depth=56),
    "resnet8x4_aux": partial(AuxiliaryResNet, depth=8, widths=(32, 64, 128, 256)),
    "resnet32x4_aux": partial(AuxiliaryResNet, depth=32, widths=(32, 64, 128, 256)),
    "simkd": _reused_classifier,
    "aux": _branched,
    "sskd": _contrasted,
    "sftn": _student_friendly,
    "resnet50_cifar": partial(ResNet, depth=50, small_images=True),
    "wrn": WideResNet,
    "wrn_16_1": partial(WideResNet, depth=16, width=1),
    "wrn_16_2": partial(WideResNet, depth=16, width=2),
    "wrn_40_1": partial(WideResNet, depth=40, width=1),
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
    "vgg8": partial(VGG, depth=8),
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "vgg19": partial(VGG, depth=19),
    "mobilenetv2_half": partial(MobileNetV2, width=0.5),
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
    "densenet100": partial(DenseNet, depth=100, bottleneck=False),
    "densenet100_bc": partial(DenseNet, depth=100, bottleneck=True),
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "resnet101": partial(ResNet, depth=101),
    "resnet152": partial(ResNet, depth=152),
    "mobilenetv1": MobileNetV1,
    "deit_tiny": partial(VisionTransformer, patch=16, dim=192, heads=3),
    "deit3_small": partial(VisionTransformer, patch=16, dim=384, heads=6, layer_scale=1e-6, class_position=False),
    "vit_b32": partial(VisionTransformer, patch=32, dim=768, heads=12),
}

# The rows that put layers around another network, which config.model.args.body names.
WRAPPERS = ("simkd", "aux", "sskd", "sftn")

# Values of config.model.dtype -> type of the computation; None takes that of parameters and images.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def create_model(name: str, num_classes: int, /, *, dtype: str | None = None, **args: Any) -> nn.Module:
    """Returns the network that a config names.

    Args:
      name: Name in MODELS, or `package.module:attribute` of a flax.linen module, its class or a function that
        returns a module.
      num_classes: Number of classes, the width of the logits.
      dtype: 'bfloat16' computes in bfloat16, with parameters, batch statistics and logits in float32. None or 'float32'
        takes the type of parameters and images, so that float64 stays float64.
      **args: Other arguments of the constructor, config.model.args; lists become tuples.

    Returns:
      Network, not bound to variables.

    Raises:
      UserError: The name or an argument is unknown, a value is not allowed, or the user's network takes no dtype.
    """
    constructor = lookup(MODELS, name, "model")
    refuse_nnx(constructor, f"model '{name}'")
    if not callable(constructor):
        raise UserError(f"model '{name}' is a {type(constructor).__name__}, not a flax.linen module.")
    compute_dtype = lookup(DTYPES, dtype or "float32", "config.model.dtype")
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if args.pop("num_classes", num_classes) != num_classes:
        raise UserError(f"config.model.args.num_classes is not yours to set: the data set has it, {num_classes}.")
    if isinstance(constructor, nn.Module):
        return _hashable(name, _as_it_is(name, constructor, num_classes, compute_dtype, args))
    _check_arguments(name, constructor, num_classes, compute_dtype, args)
    if compute_dtype is not None:
        args["dtype"] = compute_dtype
    try:
        module = constructor(num_classes=num_classes, **args)
    except (TypeError, ValueError) as error:
        raise UserError(f"model '{name}' cannot be built from {args}: {_one_line(error)}") from error
    refuse_nnx(module, f"model '{name}'")
    if not isinstance(module, nn.Module):
        raise UserError(f"model '{name}' made a {type(module).__name__}, not a flax.linen module.")
    return _hashable(name, module)


def _hashable(name: str, module: nn.Module) -> nn.Module:
    """Returns a module with tuples in place of lists, if it then has a hash: compiled steps are looked up by it."""
    values = {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.init}
    lists = {field: tuple(value) for field, value in values.items() if isinstance(value, list)}
    module = module.clone(**lists) if lists else module
    try:
        hash(module)
    except TypeError as error:
        raise UserError(
            f"model '{name}' has a field that has no hash, such as an array or a set ({_one_line(error)}); make it a "
            "number, a text, a tuple or a function."
        ) from error
    return module


def refuse_nnx(model: Any, what: str) -> None:
    """Refuses a module of flax.nnx, or a class of such modules, with the way to wrap it.

    Args:
      model: Any object.
      what: What the message calls it.

    Raises:
      UserError: It is one.
    """
    nnx = sys.modules.get("flax.nnx")  # whoever has made such a module has imported it, which takes long
    kind = model if isinstance(model, type) else type(model)
    if nnx is not None and issubclass(kind, nnx.Module):
        raise UserError(
            f"{what} is {kind.__name__}, a flax.nnx module, and kdjax trains flax.linen modules; give this function in "
            f"its place: def net(num_classes): return nnx.bridge.to_linen({kind.__name__}, num_classes)."
        )


def _as_it_is(name: str, module: Any, num_classes: int, compute_dtype: Any, args: dict) -> nn.Module:
    """Returns a module that a name stands for, if it has the right number of classes, in the type of computation."""
    if args:
        raise UserError(f"model '{name}' is a module, which takes no config.model.args; name its class instead.")
    own = getattr(module, "num_classes", num_classes)
    if own != num_classes:
        raise UserError(f"model '{name}' has num_classes={own}, and the data has {num_classes} classes.")
    if compute_dtype is None:
        return module
    if not hasattr(module, "dtype"):
        raise UserError(f"model '{name}' takes no dtype: give it such a field, or set config.model.dtype=float32.")
    return module.clone(dtype=compute_dtype)


def _check_arguments(name: str, constructor: Callable, num_classes: int, compute_dtype: Any, args: dict) -> None:
    try:
        takes = signature_of(constructor, skip=("parent", "name"))
    except (TypeError, ValueError):  # some callables have no signature; calling them tells
        return
    if takes.takes_any:
        return
    if "num_classes" not in takes.parameters:
        raise UserError(f"model '{name}' must take the argument num_classes (here {num_classes}).")
    if compute_dtype is not None and "dtype" not in takes.parameters:
        raise UserError(f"model '{name}' takes no dtype: give it such a field, or set config.model.dtype=float32.")
    takes = signature_of(constructor, skip=("parent", "name", "num_classes", "dtype"))
    check_arguments(takes, args, field="config.model.args", owner=f"model '{name}'")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
