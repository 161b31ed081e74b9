"""DOT: SGD with one momentum for the task and one for the distillation.

Reference: Zhao, Cui, Song & Liang, 2023, "DOT: A Distillation-Oriented Trainer", https://arxiv.org/abs/2307.08436
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax.types import Array


class Streams(NamedTuple):
    """A tree for each of the two streams: gradients, or the velocities that they build up.

    Attributes:
      task: Of the losses that read no teacher.
      distillation: Of the losses that read one.
    """

    task: Any
    distillation: Any

    @property
    def total(self) -> Any:
        """The sum of both."""
        return jax.tree.map(jnp.add, self.task, self.distillation)


def dot(momentum: Array, delta: Array, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the transformation of gradients, as Streams of {'model': ..., 'distiller': ...}, into updates.

    With gradients g and momentum m, v_task = (m - delta) v_task + g_task + weight decay, v_distillation = (m + delta)
    v_distillation + g_distillation, and the update is their sum. The losses' own trainable parts have gradients of the
    distillation alone: there the momentum is m, and weight decay stands in that stream. A delta of 0 is SGD.

    Args:
      momentum: [] momentum m.
      delta: [] half the difference of the two momenta.
      decay: Adds weight decay to gradients, without a state.
    """

    def init(params: Any) -> Streams:
        return Streams(*(jax.tree.map(jnp.zeros_like, params) for _ in Streams._fields))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Streams]:
        decayed, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
        model = Streams(
            _moved(state.task["model"], momentum - delta, updates.task["model"], decayed["model"]),
            _moved(state.distillation["model"], momentum + delta, updates.distillation["model"]),
        )
        own = updates.total["distiller"]
        distiller = _moved(state.distillation["distiller"], momentum, own, decayed["distiller"])
        still = jax.tree.map(jnp.zeros_like, own)
        return {"model": model.total, "distiller": distiller}, Streams(
            {"model": model.task, "distiller": still}, {"model": model.distillation, "distiller": distiller}
        )

    return optax.GradientTransformation(init, update)


def _moved(velocity: Any, momentum: Array, *forces: Any) -> Any:
    """Returns velocities after a step: momentum times the old ones plus all forces."""
    return jax.tree.map(lambda old, *new: sum(new, momentum * old), velocity, *forces)
