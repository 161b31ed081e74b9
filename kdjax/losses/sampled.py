"""Teachers of which a few classes were drawn at random, as in RS-KD.

A draw of class k from a proposal g counts as p_k / (N g_k) of N draws. These weights are not normalised: only then do
they add up to p on average, so that the cross-entropy, the forward divergence and their gradients are unbiased. No
other loss would be, since it is not linear in p.

Reference: "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", 2025, https://arxiv.org/abs/2503.16870;
its code and proposal were not published, so that the proposal is the caller's.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.losses._checks import as_float
from kdjax.losses._softmax import centred
from kdjax.types import Sampled


def sampled_teacher(
    indices: ArrayLike, log_probs: ArrayLike, log_proposal: ArrayLike, counts: ArrayLike | None = None
) -> Sampled:
    """Returns what `cross_entropy` and `forward_kl` take for classes that were drawn from a proposal.

    Args:
      indices: Classes drawn [..., n]; the same class may stand in a row more than once.
      log_probs: Natural logarithms [..., n] of the teacher's probabilities p of these classes, at temperature 1.
      log_proposal: Natural logarithms [..., n] of the probabilities with which they were drawn; `log_probs` itself if
        they were drawn from the teacher.
      counts: How often each was drawn [..., n]; None for once. 0 stands for an empty place.

    Raises:
      ValueError: The shapes differ, or the indices are not integers.

    References:
      "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", 2025, https://arxiv.org/abs/2503.16870
    """
    indices, log_probs, log_proposal = jnp.asarray(indices), as_float(log_probs), as_float(log_proposal)
    drawn = jnp.ones_like(log_probs) if counts is None else as_float(counts)
    shapes = [list(part.shape) for part in (indices, log_probs, log_proposal, drawn)]
    if any(shape != shapes[0] for shape in shapes) or not shapes[0]:
        raise ValueError(f"indices, log_probs, log_proposal and counts must have one shape [..., n], not {shapes}.")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"the indices of a sampled teacher must be integers, not {indices.dtype}.")
    some = drawn > 0
    ratio = jnp.exp(jnp.where(some, log_probs - log_proposal, 0))
    weights = jnp.where(some, drawn * ratio, 0) / jnp.sum(drawn, axis=-1, keepdims=True)
    return Sampled(indices, jnp.where(some, log_probs, 0), weights)


def sampled_values(student: Array, teacher: Sampled, less_entropy: bool) -> tuple[Array, Array]:
    """Returns sum_k t_k (-log q_k) [...] or, less the teacher's entropy, sum_k t_k (log p_k - log q_k).

    Also returns whether the student's logits are a distribution [...].

    Args:
      student: Logits [..., classes].
      teacher: What was drawn, [..., n].
      less_entropy: Whether log p_k is added, for the divergence.

    Raises:
      ValueError: The shapes do not fit.
    """
    indices, log_probs, weights = teacher
    if indices.shape[:-1] != student.shape[:-1] or indices.ndim != student.ndim:
        raise ValueError(
            f"a sampled teacher of {list(indices.shape)} does not fit logits {list(student.shape)}, must be [..., n]."
        )
    student, good = centred(student)
    log_q = jnp.take_along_axis(jax.nn.log_softmax(student), indices, axis=-1)
    terms = (log_probs if less_entropy else 0) - log_q
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, terms, 0), 0), axis=-1), good
