"""Finding the state dict in what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.errors import UserError

WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "module")  # keys under which a state dict may lie
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
DEPTH = 4  # of wrappers in wrappers


def unwrap(checkpoint: Any) -> dict[str, np.ndarray]:
    """Finds the state dict in what a checkpoint holds.

    Args:
      checkpoint: a mapping of names to arrays, or one that keeps such a mapping under a key of WRAPPERS, or that in
        another; what lies beside it (epoch, optimizer, ...) is left out.

    Returns:
      Names -> NumPy arrays, without a prefix of PREFIXES that all names share.

    Raises:
      UserError: there is no state dict, or more than one; says what there is.
    """
    found = _state_dicts(checkpoint) if isinstance(checkpoint, Mapping) else {}
    if len(found) != 1:
        names = ", ".join(repr(name) for name in found)
        what = f"several state dicts ({names})" if found else f"no state dict under {', '.join(WRAPPERS)}"
        advice = "the one you mean alone" if found else "model.state_dict() alone"
        raise UserError(f"{what}; there is {_contents(checkpoint)}: save {advice}.")
    state = next(iter(found.values()))
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: np.asarray(value) for name, value in state.items()}


def _state_dicts(node: Mapping, where: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Path -> state dict, for each in `node`; the depth is bounded since a pickle can make a mapping hold itself."""
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
