"""Finds the state dict in a checkpoint of PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.errors import UserError

WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "module")  # keys whose value may be a state dict
PREFIXES = ("module.", "_orig_mod.")  # prefixes that DataParallel and torch.compile add to all names
DEPTH = 4  # largest number of wrappers inside each other


def unwrap(checkpoint: Any) -> dict[str, np.ndarray]:
    """Returns the state dict in a checkpoint.

    Args:
      checkpoint: A mapping of names to arrays, or a mapping that has such a mapping under a key of WRAPPERS, at most
        DEPTH levels deep. Other entries, such as the epoch or the state of an optimizer, are ignored.

    Returns:
      Name -> NumPy array, without those PREFIXES that all names have.

    Raises:
      UserError: There is no state dict or more than one. The message lists what the checkpoint has.
    """
    found = _state_dicts(checkpoint) if isinstance(checkpoint, Mapping) else {}
    if len(found) != 1:
        names = ", ".join(repr(name) for name in found)
        what = f"several state dicts ({names})" if found else f"no state dict under {', '.join(WRAPPERS)}"
        advice = "only the one that you want" if found else "only model.state_dict()"
        raise UserError(f"{what}; there is {_contents(checkpoint)}: save {advice}.")
    state = next(iter(found.values()))
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: np.asarray(value) for name, value in state.items()}


def _state_dicts(node: Mapping, where: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Returns path -> state dict for each in `node`. The depth is limited, since a mapping may contain itself."""
    inner = {}
    for key in WRAPPERS:
        if isinstance(node.get(key), Mapping) and len(where) < DEPTH:
            inner |= _state_dicts(node[key], (*where, key))
    own = _arrays(node)
    if inner or not own:
        return inner
    strangers = {key: _arrays(value) for key, value in node.items() if isinstance(value, Mapping)}
    return {"/".join(where) or "top": own, **{str(key): arrays for key, arrays in strangers.items() if arrays}}


def _arrays(node: Mapping) -> dict[str, Any]:
    return {key: value for key, value in node.items() if isinstance(key, str) and _is_array(value)}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and not isinstance(value, np.generic)


def _contents(node: Any, limit: int = 8) -> str:
    if not isinstance(node, Mapping):
        return f"a {_kind(node)}"
    if not node:
        return "nothing"
    listed = [f"{ascii(key)[:60]} ({_kind(value)})" for key, value in list(node.items())[:limit]]
    return ", ".join(listed) + (f", ... ({len(node)} in all)" if len(node) > limit else "")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"mapping of {len(value)}"
    return f"array {list(value.shape)}" if _is_array(value) else type(value).__name__.strip("_").lower()
