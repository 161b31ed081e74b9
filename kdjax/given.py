"""Objects that a script or a notebook gives as a network or as losses, and the names by which its config records them.

What a module of Python's has under a name is recorded as 'module:name', or as the row of MODELS or LOSSES that it is.
Everything else, such as a lambda or a class of a notebook, is kept in this process as '__main__:NAME': it trains as
anything else does, but another process cannot find it.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import losses as losses_room
from kdjax import models
from kdjax.errors import UserError, keep
from kdjax.own_code import MAIN

DTYPES = {None: "float32", jnp.float32: "float32", jnp.bfloat16: "bfloat16"}  # field of a module -> config.model.dtype
OF_FLAX = ("parent", "name")  # fields that every flax module has


def with_objects(config: ConfigDict, model: Any = None, losses: Any = None) -> ConfigDict:
    """Returns a copy of a config that names the objects in place of its own network and losses.

    Args:
      config: A whole config.
      model: A flax module, its class, or a function that is called with num_classes and returns one; None for the
        config's own network.
      losses: A function, which is then the only loss, with weight 1; or label -> function, the name of a loss, or an
        entry of config.losses whose 'loss' is a function. A label that the config has keeps its weight and its
        hyper-parameters, labels that are left out are dropped. None for the config's own losses.

    Raises:
      UserError: An object is neither, or is a module of flax.nnx.
    """
    config = ConfigDict(config.to_dict())
    taken: set[str] = set()
    if model is not None:
        _set_model(config, model, taken)
    if losses is not None:
        config.losses = ConfigDict(_entries(losses, config.losses.to_dict(), taken))
    return config


def _set_model(config: ConfigDict, model: Any, taken: set[str]) -> None:
    if not isinstance(model, nn.Module) and not callable(model):
        raise UserError(f"model= takes a flax.linen module, its class or a function that makes one, not {model!r}.")
    models.refuse_nnx(model, "model=")
    found = _described(model, taken) if isinstance(model, nn.Module) else None
    name = found[0] if found else _name_of(model, _word(model), taken)
    if found or name != config.model.name:  # the arguments of another network are not this one's
        config.model.args = ConfigDict(found[1] if found else {})
    config.model.name = name
    if isinstance(model, nn.Module):
        config.model.dtype = DTYPES.get(getattr(model, "dtype", None), "float32")


def _described(module: nn.Module, taken: set[str]) -> tuple[str, dict[str, Any]] | None:
    """Returns (name, arguments) that make the same module again; None if there are none."""
    if found := _attribute_of(module):
        return found, {}
    fields = {field.name: field for field in dataclasses.fields(module) if field.init and field.name not in OF_FLAX}
    if "num_classes" not in fields:
        return None
    values = {name: getattr(module, name) for name in fields}
    if values.pop("dtype", None) not in DTYPES:
        return None
    row, set_by_row = _row_of(module, values) or ("", {})
    rest = {field: value for field, value in values.items() if field not in set_by_row}
    args = {field: value for field, value in rest.items() if value is not fields[field].default}
    if not _is_plain(args):
        return None
    return row or _name_of(type(module), _word(module), taken), args


def _row_of(module: nn.Module, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the row of MODELS that sets most fields of a module as they are, and these fields."""
    rows = {row: made for row, made in models.MODELS.items() if getattr(made, "func", made) is type(module)}
    fields = {row: getattr(made, "keywords", {}) for row, made in rows.items()}
    fitting = [row for row in rows if all(values[name] == value for name, value in fields[row].items())]
    best = max(fitting, key=lambda row: len(fields[row]), default="")
    return (best, fields[best]) if best else None


def _is_plain(value: Any) -> bool:
    """Whether a value is one that a config can have."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def _entries(given: Any, before: Mapping[str, Any], taken: set[str]) -> dict[str, dict[str, Any]]:
    """Returns config.losses for the losses that were given."""
    if callable(given):
        given = {_word(given): given}
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"losses= takes a function, or a mapping of labels to functions, not {given!r}.")
    found = {}
    for label, value in given.items():
        entry = dict(value) if isinstance(value, Mapping) else {**before.get(label, {}), "loss": value}
        loss = entry.get("loss", label)
        if not isinstance(loss, str):
            if not callable(loss):
                raise UserError(f"losses=: '{label}' must be a function or the name of a loss, not {loss!r}.")
            entry["loss"] = _name_of(loss, label, taken, losses_room.LOSSES)
        found[label] = {"weight": 1.0, **entry}
    return found


def _name_of(value: Any, word: str, taken: set[str], table: Mapping[str, Callable] = models.MODELS) -> str:
    """Returns the name of an object; one that has none is kept in this process by a word."""
    rows = [row for row, known in table.items() if known is value]
    if rows:
        return rows[0]
    if found := _attribute_of(value):
        return found
    name = f"{MAIN}:{_unused(re.sub('[^A-Za-z0-9_]', '_', word), taken)}"
    taken.add(name.partition(":")[2])
    keep(name, value)
    return name


def _unused(word: str, taken: Collection[str]) -> str:
    return word if word not in taken else _unused(f"{word}_", taken)


def _attribute_of(value: Any) -> str:
    """Returns 'module:attribute' by which another process can import an object, '' if there is none."""
    module = getattr(value, "__module__", None)
    space = vars(sys.modules[module]) if module in sys.modules and module != MAIN else {}
    own = getattr(value, "__name__", "")  # a function or a class; an instance can be looked for only
    names = [own] if own else [name for name, other in space.items() if other is value]
    return next((f"{module}:{name}" for name in names if space.get(name) is value and name.isidentifier()), "")


def _word(value: Any) -> str:
    """Returns a word for an object: the name of a function or a class, or of the class of an instance."""
    name = getattr(value, "__name__", type(value).__name__)
    return "own" if name == "<lambda>" else name
