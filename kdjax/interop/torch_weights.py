"""Converts PyTorch state dicts to kdjax variables and back, for every network that has a table TORCH_NAMES.

TORCH_NAMES is {dialect: rules}. A dialect is a repository whose names are used. A rule is a pair of a pattern for the
path of a layer in kdjax and the layer's name in PyTorch: a string, or a function of the groups of the pattern, where
digits are passed as int. The suffix of the leaf is added to it; kernel and scale become `.weight`. A leaf that belongs
to no layer, such as a class token, has a rule for its whole path.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from flax import traverse_util

from kdjax.errors import UserError
from kdjax.interop.flattened import flattened_inputs, is_known_to_pool
from kdjax.interop.state_dict import unwrap
from kdjax.models.initialize import variable_shapes

SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
IGNORED = ("num_batches_tracked",)  # BatchNorm's count of steps, which no network reads

Rules = Sequence[tuple[str, str | Callable[..., str]]]


class Images(NamedTuple):
    """What a data set says of the network that was trained on it.

    Attributes:
      input_shape: Shape of a batch of one image.
      num_classes: Number of classes.
    """

    input_shape: tuple[int, ...]
    num_classes: int


def from_state_dict(
    model_name: str, state_dict: Mapping[str, Any], /, images: Images | None = None, **args: Any
) -> dict[str, Any]:
    """Converts a PyTorch state dict to the variables of a network.

    Args:
      model_name: A row of MODELS.
      state_dict: Name -> array, perhaps inside a checkpoint (see `state_dict.unwrap`). Its shapes determine the numbers
        of classes, of input channels and, for a transformer, of positions.
      images: What the data says of a network of the user's own, or one that flattens images; None if it is not known.
      **args: Arguments of the network's constructor besides num_classes.

    Returns:
      {'params': ..., 'batch_stats': ...} with NumPy arrays of float32 (float64 with jax_enable_x64).

    Raises:
      UserError: Entries are missing, unexpected, of another shape or not finite. The message has all of their names.
    """
    module, state = match_state_dict(model_name, state_dict, images, **args)
    return _convert(model_name, module, state, images)


def match_state_dict(
    model_name: str, state_dict: Mapping[str, Any], /, images: Images | None = None, **args: Any
) -> tuple[nn.Module, dict]:
    """Returns the network that a state dict is for, with the same number of classes, and the unwrapped state dict."""
    from kdjax.models import create_model  # imports all networks

    state = {key: value for key, value in unwrap(state_dict).items() if key.rpartition(".")[2] not in IGNORED}
    probe = create_model(model_name, 1, **args)
    named = _kernel_names(probe, "HEAD", "fc")
    heads = [name for name in named if name in state]
    if not heads and images is not None and not hasattr(probe, "HEAD"):
        return create_model(model_name, images.num_classes, **args), state  # wrong shapes are told later
    if not heads:
        wanted = " or ".join(sorted(set(named))) or "classifier 'fc'"
        raise UserError(
            f"the state dict is not of a {model_name}: it has no {wanted}, but {_listed(sorted(state))}."
            + ("" if is_known_to_pool(probe) or images else " If its classifier has another name, name --data.")
        )
    return create_model(model_name, state[heads[0]].shape[0], **args), state


def to_state_dict(
    module: nn.Module,
    variables: Mapping[str, Any],
    dialect: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Converts the variables of a network to a PyTorch state dict.

    Args:
      module: The network.
      variables: {'params': ..., 'batch_stats': ...}.
      dialect: Dialect of TORCH_NAMES; None for the network's first one. The names of a network without TORCH_NAMES are
        its paths, joined by dots.
      input_shape: Shape of a batch of one image, for a network that flattens maps: PyTorch flattens the channels first.
        None leaves their order.

    Returns:
      Name -> contiguous NumPy array in PyTorch's layout.

    Raises:
      UserError: The network has no such dialect.
    """
    dialects = _dialects(module)
    dialect = next(iter(dialects)) if dialect is None else dialect
    if dialect not in dialects:
        raise UserError(f"{type(module).__name__} has no names for '{dialect}'; it has {', '.join(dialects)}.")
    leaves = _leaves(variables)
    for path, shape in (flattened_inputs(module, variables, input_shape) if input_shape else {}).items():
        leaves[path] = _channels_first(np.asarray(leaves[path]), shape)
    return {
        _torch_name(dialects[dialect], path): np.ascontiguousarray(_to_torch(path, np.asarray(leaf)))
        for path, leaf in leaves.items()
    }


def _convert(
    model_name: str, module: nn.Module, state: Mapping[str, np.ndarray], images: Images | None
) -> dict[str, Any]:
    pools = is_known_to_pool(module)
    input_shape = _input_shape(module, state) if pools or images is None else images.input_shape
    shapes = variable_shapes(module, input_shape)
    leaves = {
        f"{collection}/{path}": leaf
        for collection, tree in shapes.items()
        for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }
    names = _best_names(module, leaves, state)
    _check(model_name, leaves, names, state)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    converted = {path: _from_torch(path, state[name]).astype(dtype) for path, name in names.items()}
    for path, shape in ({} if pools else flattened_inputs(module, shapes, input_shape)).items():
        converted[f"params/{path}"] = _channels_last(converted[f"params/{path}"], shape)
    if not pools and images is None:
        logging.warning(
            "%s: without --data it is not known whether it flattens images; inputs of dense layers are taken to be in "
            "the order (height, width, channels), where PyTorch has (channels, height, width).",
            model_name,
        )
    return {name: {} for name in shapes} | traverse_util.unflatten_dict(converted, sep="/")


def _channels_last(kernel: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Reorders the inputs of a kernel [in, out] from PyTorch's flattened map to flax's, [height, width, channels]."""
    whole = kernel.reshape(shape[-1], *shape[:-1], kernel.shape[-1])
    return np.ascontiguousarray(np.moveaxis(whole, 0, -2)).reshape(kernel.shape)


def _channels_first(kernel: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Undoes `_channels_last`."""
    whole = kernel.reshape(*shape, kernel.shape[-1])
    return np.ascontiguousarray(np.moveaxis(whole, -2, 0)).reshape(kernel.shape)


def _input_shape(module: nn.Module, state: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the shape of a batch of one image that the network accepts.

    The kernel of the stem determines the channels, and the positions of a transformer determine the size.
    """
    stems = [name for name in _kernel_names(module, "STEM", "stem") if name in state]
    if stems and state[stems[0]].ndim == 2:
        return 1, state[stems[0]].shape[1]  # vectors
    channels = state[stems[0]].shape[1] if stems else 3
    side = module.image_side(state) if hasattr(module, "image_side") else 32
    return 1, side, side, channels


def _best_names(module: nn.Module, leaves: Mapping, state: Mapping) -> dict[str, str]:
    """Returns path of each leaf -> name, in the dialect that has the most names in common with the state dict."""
    candidates = [{path: _torch_name(rules, _within(path)) for path in leaves} for rules in _dialects(module).values()]
    return max(candidates, key=lambda names: len(set(names.values()) & set(state)))


def _check(model_name: str, leaves: Mapping, names: Mapping[str, str], state: Mapping[str, np.ndarray]) -> None:
    missing = sorted(set(names.values()) - set(state))
    surplus = sorted(set(state) - set(names.values()))
    shapes = {name: _torch_shape(path, leaves[path].shape) for path, name in names.items() if name in state}
    misshapen = [
        f"{name} {state[name].shape} instead of {shape}" for name, shape in shapes.items() if state[name].shape != shape
    ]
    not_finite = [name for name in shapes if not np.all(np.isfinite(state[name]))]
    problems = {"missing": missing, "surplus": surplus, "misshapen": misshapen, "not finite": not_finite}
    found = [f"{what}: {', '.join(entries)}" for what, entries in problems.items() if entries]
    if found:
        raise UserError(f"the state dict does not fit {model_name}; {'; '.join(found)}.")


def _dialects(module: nn.Module) -> Mapping[str, Rules]:
    return getattr(module, "TORCH_NAMES", {"paths": ((r"(.*)", lambda path: path.replace("/", ".")),)})


def _kernel_names(module: nn.Module, table: str, default: str) -> list[str]:
    """Returns the names, in every dialect, of the kernel of the layer that HEAD or STEM names.

    A network of the user's own that has neither may have no layer of the default name.
    """
    path = f"{getattr(module, table, default)}/kernel"
    try:
        return [_torch_name(rules, path) for rules in _dialects(module).values()]
    except UserError:
        if hasattr(module, table):
            raise
        return []


def _torch_name(rules: Rules, path: str) -> str:
    layer, _, leaf = path.rpartition("/")
    suffix = SUFFIXES.get(leaf)
    target = layer if suffix else path
    for pattern, name in rules:
        if found := re.fullmatch(pattern, target):
            if callable(name):
                name = name(*(int(group) if group and group.isdigit() else group for group in found.groups()))
            return name.format(suffix) if "{}" in name else f"{name}.{suffix}" if suffix else name
    raise UserError(f"TORCH_NAMES has no pattern for '{target}'; add one.")


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path inside a collection -> leaf; no path is in both collections."""
    return {
        path: leaf
        for collection in ("params", "batch_stats")
        for path, leaf in traverse_util.flatten_dict(variables.get(collection, {}), sep="/").items()
    }


def _within(path: str) -> str:
    return path.partition("/")[2]


def _torch_axes(path: str, ndim: int) -> tuple[int, ...]:
    """Returns the order of a leaf's axes in PyTorch: a kernel [..., in, out] is a weight [out, in, ...]."""
    if path.rpartition("/")[2] != "kernel":
        return tuple(range(ndim))
    return ndim - 1, ndim - 2, *range(ndim - 2)


def _torch_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _torch_axes(path, len(shape)))


def _to_torch(path: str, leaf: np.ndarray) -> np.ndarray:
    return leaf.transpose(_torch_axes(path, leaf.ndim))


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    axes = _torch_axes(path, value.ndim)
    return np.ascontiguousarray(value.transpose(np.argsort(axes)))


def _listed(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
