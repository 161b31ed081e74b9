"""Which parameters are trained: the one place that answers it, for gradients, updates and statistics alike.

`config.trainable` freezes the body for the whole run, `config.warmup.trains` the head or the network during the
warm-up, `config.optimizer.body_factor` slows the body down, and a method's `warmup_parts` are trained by the warm-up
alone (`kdjax.distillation.methods`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax import models
from kdjax.distillation.terms import Term
from kdjax.errors import UserError, nearest
from kdjax.types import Array, Config


class AdapterParts(NamedTuple):
    """Which parts of a term's adapter a phase trains.

    Attributes:
      only: The parts that are trained, () for all.
      never: The parts that are frozen.
    """

    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def trains(self, part: str) -> bool:
        """Whether a part is trained."""
        return part not in self.never and (not self.only or part in self.only)


class Freezing(NamedTuple):
    """Which parameters a phase trains; hashable, a part of what shapes a compiled step.

    Attributes:
      head: Name of the classifier among the network's parameters; all others are the body.
      trainable: 'all', or 'head' for a body that is frozen for the whole run.
      phase_trains: 'all', 'body' for a head that the phase freezes, or 'distiller' for a network that it freezes.
      reached_only: Whether parameters with a zero gradient keep still, so that weight decay does not shrink them.
      adapters: (term, parts of its adapter that are trained); adapters of other terms are frozen.
      frozen: Names of the parts of the network that no phase trains.
    """

    head: str
    trainable: str
    phase_trains: str
    reached_only: bool
    adapters: tuple[tuple[str, AdapterParts], ...]
    frozen: tuple[str, ...] = ()

    @property
    def network_trains(self) -> bool:
        """Whether the network runs in training mode: with batch statistics and dropout."""
        return self.trainable == "all" and self.phase_trains != "distiller"


def frozen_parts(model: nn.Module | models.FeatureExtractor) -> tuple[str, ...]:
    """Returns the names of the parts that a network never trains, its attribute FROZEN."""
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    return tuple(getattr(module, "FROZEN", ()))


def make_freezing(config: Config, terms: Sequence[Term], frozen: tuple[str, ...] = (), *, warming_up: bool) -> Freezing:
    """Returns which parameters a phase trains.

    Args:
      config: Resolved config.
      terms: The terms of the phase.
      frozen: Names of the parts of the network that are never trained.
      warming_up: Whether the phase is the warm-up.
    """
    parts = {term.key: term.method.warmup_parts for term in terms}
    adapters = {
        key: AdapterParts(only=names) if warming_up else AdapterParts(never=names) for key, names in parts.items()
    }
    return Freezing(
        head=config.model.head,
        trainable=config.trainable,
        phase_trains=config.warmup.trains if warming_up else "all",
        reached_only=warming_up,
        adapters=tuple(adapters.items()),
        frozen=frozen,
    )


def check_head(config: Config, variables: Mapping[str, Any]) -> None:
    """Refuses a head that the network does not have, where the config treats head and body differently.

    Raises:
      UserError: config.model.head names no layer of the network.
    """
    needed = config.trainable == "head" or config.optimizer.body_factor != 1.0
    if needed and config.model.head not in variables["params"]:
        hint = nearest(config.model.head, variables["params"])
        raise UserError(f"config.model.head: {config.model.name} has no layer '{config.model.head}'.{hint}")


def stop_gradients(params: Mapping[str, Any], freezing: Freezing) -> Mapping[str, Any]:
    """Returns the network's parameters with gradients stopped where the whole run freezes them."""
    if freezing.trainable == "all" and not freezing.frozen:
        return params
    moves = {name for name in params if freezing.trainable == "all" or name == freezing.head} - {*freezing.frozen}
    return {name: tree if name in moves else jax.lax.stop_gradient(tree) for name, tree in params.items()}


def mask_updates(
    updates: Mapping[str, Any], gradients: Mapping[str, Any], freezing: Freezing, body_factor: Array
) -> dict[str, Any]:
    """Returns an optimizer's updates with those of frozen parameters at zero and those of the body scaled.

    Args:
      updates: {'model': ..., 'distiller': term -> teacher -> part -> ...}.
      gradients: The gradients that they were made from, in the same structure.
      freezing: What the phase trains.
      body_factor: [] factor of the body's updates.
    """
    if freezing.reached_only:
        updates = jax.tree.map(lambda update, gradient: update * jnp.any(gradient != 0), updates, gradients)
    model = _scale_body(updates["model"], freezing.head, 0.0 if freezing.trainable == "head" else body_factor)
    if freezing.phase_trains == "body":
        model = {name: _zeros(tree) if name == freezing.head else tree for name, tree in model.items()}
    elif freezing.phase_trains == "distiller":
        model = _zeros(model)
    model = {name: _zeros(tree) if name in freezing.frozen else tree for name, tree in model.items()}
    trained = dict(freezing.adapters)
    distiller = {
        key: {teacher: _mask_adapter(parts, trained.get(key)) for teacher, parts in teachers.items()}
        for key, teachers in updates["distiller"].items()
    }
    return {"model": model, "distiller": distiller}


def _scale_body(updates: Mapping[str, Any], head: str, factor: Array) -> dict[str, Any]:
    body = {name: tree for name, tree in updates.items() if name != head}
    return {**updates, **jax.tree.map(lambda update: update * factor, body)}


def _mask_adapter(updates: Mapping[str, Any], trained: AdapterParts | None) -> dict[str, Any]:
    return {
        part: tree if trained is not None and trained.trains(part) else _zeros(tree) for part, tree in updates.items()
    }


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
