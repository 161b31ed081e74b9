"""CTKD: distillation at a temperature that learns to make the task harder.

Reference: Li et al., 2023, "Curriculum Temperature for Knowledge Distillation", https://arxiv.org/abs/2211.16231
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.losses._checks import as_float, of_all_classes
from kdjax.losses.logits import kd


def ctkd(student_logits: Array, teacher_logits: Array, learned_temperature: Array) -> Array:
    """Computes CTKD's loss, T^2 KL(p_T || q_T) with a temperature T that is learned too.

    The gradient reaches T through the factor as well. The learner of T turns it round with `reversed_gradient`, so that
    the same step lowers the loss for the student and raises it for T.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      learned_temperature: Temperature T [] of both softmaxes, above 0.

    Returns:
      Loss of each example [...] in nats, at least 0; 0 where q = p.

    Raises:
      ValueError: The shapes differ, or the temperature is known and not above 0.

    References:
      Li et al., 2023, "Curriculum Temperature for Knowledge Distillation", https://arxiv.org/abs/2211.16231
    """
    of_all_classes(teacher_logits, "ctkd")
    return kd(student_logits, teacher_logits, temperature=learned_temperature)  # pyright: ignore[reportArgumentType]


def reversed_gradient(x: Array, strength: ArrayLike) -> Array:
    """Returns x, whose gradient is multiplied by -strength.

    Args:
      x: Array of any shape.
      strength: [] how much of the gradient is turned round; 0 passes none on.
    """
    x = as_float(x)
    fixed = jax.lax.stop_gradient(x)
    return fixed - strength * (x - fixed)


def reversal_strength(epoch: ArrayLike, epochs: ArrayLike) -> Array:
    """Returns the strength of the reversal in an epoch, which rises from 0 to 1 along half a cosine and stays there.

    Args:
      epoch: [] epoch, counted from 0.
      epochs: [] number of epochs until 1 is reached, above 0.
    """
    share = jnp.clip(jnp.asarray(epoch) / epochs, 0, 1)
    return (1 - jnp.cos(jnp.pi * share)) / 2
