"""Contrastive representation distillation: the noise-contrastive loss on scores against a memory of embeddings."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float


def crd(student_scores: Array, teacher_scores: Array, normalizers: tuple[Array, Array], *, examples: int) -> Array:
    """CRD: noise-contrastive estimation in both directions (Tian, Krishnan & Isola, 2020, eq. 18).

    Args:
      student_scores: [batch, 1 + negatives] inner products by temperature of each example's student embedding with the
        teacher's remembered ones; the example itself comes first, then examples of other classes.
      teacher_scores: likewise, the teacher's embedding with the student's remembered ones.
      normalizers: ([], []) Z of the two, which turn exp(score) / Z into a probability among `examples`.
      examples: that are remembered.

    Returns:
      [] sum over the two of the means over the batch.

    Raises:
      ValueError: scores that are not [batch, 1 + negatives], two entries at least.
    """
    return sum(
        contrast_loss(scores, normalizer, examples=examples)
        for scores, normalizer in zip((student_scores, teacher_scores), normalizers, strict=True)
    )


def contrast_loss(scores: Array, normalizer: Array, *, examples: int) -> Array:
    """-log h(positive) - Σ log(1 - h(negative)), h(x) = x / (x + m/n + ε), x = exp(score) / Z, mean over the batch.

    m is the number of negatives, n that of examples, ε = 1e-7, as in RepDistiller's code.

    Args:
      scores: [batch, 1 + m], the positive first.
      normalizer: [] Z, above 0.
      examples: n.

    Returns:
      [] scalar.

    Raises:
      ValueError: scores of another shape.
    """
    scores = as_float(scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be [batch, 1 + negatives], not {list(scores.shape)}.")
    noise = (scores.shape[1] - 1) / examples
    log_odds = scores - jnp.log(normalizer) - math.log(noise + 1e-7)
    positive = jax.nn.softplus(-log_odds[:, 0])
    negative = jax.nn.softplus(log_odds[:, 1:])  # near 0 for most: what rounding leaves of a difference would add up
    return jnp.mean(positive + jnp.sum(negative, axis=1)) + (scores.shape[1] - 1) * math.log1p(1e-7 / noise)


def contrast_scores(embeddings: Array, memory: Array, rows: Array, *, temperature: float = 0.07) -> Array:
    """Returns the inner products by temperature of embeddings with remembered ones.

    Args:
      embeddings: [batch, dim], of length 1.
      memory: [examples, dim].
      rows: [batch, 1 + negatives] of the memory.
      temperature: above 0.

    Returns:
      [batch, 1 + negatives]. One product with the whole memory where that is smaller than gathering the rows.
    """
    dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
    if memory.shape[0] <= rows.shape[1] * memory.shape[1]:
        products = jnp.matmul(embeddings, memory.astype(dtype).T, precision="highest")
        return jnp.take_along_axis(products, rows, axis=1) / temperature
    return jnp.einsum("bd,bkd->bk", embeddings, memory[rows].astype(dtype), precision="highest") / temperature


def first_normalizer(scores: Array, *, examples: int) -> Array:
    """Returns Z as the first batch sets it: the mean of exp(score), times the number of examples."""
    return jnp.exp(jax.nn.logsumexp(scores) - math.log(scores.size)) * examples
