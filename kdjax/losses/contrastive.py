"""Contrastive representation distillation: a noise-contrastive loss on scores against a memory of embeddings.

Reference: Tian, Krishnan & Isola, 2020, "Contrastive Representation Distillation", https://arxiv.org/abs/1910.10699
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import add_up, as_float

EPSILON = 1e-7  # of the denominator of h(x), as in RepDistiller's code


def crd(student_scores: Array, teacher_scores: Array, normalizers: tuple[Array, Array], *, examples: int) -> Array:
    """Computes the CRD loss, a noise-contrastive estimation in both directions.

    Args:
      student_scores: Scores [batch, 1 + negatives] of each example's student embedding: its inner products, divided by
        the temperature, with remembered teacher embeddings, first that of the example itself (the positive), then
        those of examples of other classes.
      teacher_scores: Scores [batch, 1 + negatives] of each example's teacher embedding with remembered student
        embeddings, in the same order.
      normalizers: Normalisers Z [], above 0, of the two sides; exp(score) / Z is an example's probability among all
        `examples`.
      examples: Number of examples in the memory.

    Returns:
      Sum of the two directions' means over the batch [].

    Raises:
      ValueError: Scores are not [batch, 1 + negatives] with at least one negative.

    References:
      Tian, Krishnan & Isola, 2020, "Contrastive Representation Distillation", eq. 18,
      https://arxiv.org/abs/1910.10699
    """
    sides = zip((student_scores, teacher_scores), normalizers, strict=True)
    return add_up([contrast_loss(scores, normalizer, examples=examples) for scores, normalizer in sides])


def contrast_loss(scores: Array, normalizer: Array, *, examples: int) -> Array:
    """Computes CRD's loss in one direction, -log h(x) of the positive minus the sum of log(1 - h(x)) of the negatives.

    h(x) = x / (x + m / n + 1e-7) with x = exp(score) / Z, m negatives and n examples in the memory. 1 - h(x) is
    computed as (m / n) / (x + m / n + 1e-7). Both are those of RepDistiller's code.

    Args:
      scores: Scores [batch, 1 + m], the positive first.
      normalizer: Normaliser Z [], above 0.
      examples: Number n of examples in the memory.

    Returns:
      Mean over the batch [].

    Raises:
      ValueError: Scores are not [batch, 1 + negatives] with at least one negative.

    References:
      Tian, Krishnan & Isola, 2020, "Contrastive Representation Distillation", eq. 18,
      https://arxiv.org/abs/1910.10699
    """
    scores = as_float(scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be [batch, 1 + negatives], not {list(scores.shape)}.")
    noise = (scores.shape[1] - 1) / examples
    log_odds = scores - jnp.log(normalizer) - math.log(noise + EPSILON)
    positive = jax.nn.softplus(-log_odds[:, 0])
    # -log(1 - h) is almost 0 for most of thousands of negatives. softplus keeps its digits; a difference of two
    # logarithms would leave rounding errors that add up.
    negative = jax.nn.softplus(log_odds[:, 1:])
    # softplus stands for the numerator m / n + EPSILON; the constant corrects it to m / n.
    constant = (scores.shape[1] - 1) * math.log1p(EPSILON / noise)
    return jnp.mean(positive + jnp.sum(negative, axis=1)) + constant


def contrast_scores(embeddings: Array, memory: Array, rows: Array, *, temperature: float = 0.07) -> Array:
    """Computes the inner products, divided by the temperature, of embeddings with remembered embeddings.

    Args:
      embeddings: Embeddings [batch, dim] of length 1.
      memory: Remembered embeddings [examples, dim].
      rows: Rows of the memory [batch, 1 + negatives] to compare each embedding with.
      temperature: Temperature, above 0.

    Returns:
      Scores [batch, 1 + negatives].
    """
    dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
    # A product with the whole memory has batch x examples entries, the gathered rows have batch x (1 + negatives) x
    # dim: the one with fewer entries is computed.
    if memory.shape[0] <= rows.shape[1] * memory.shape[1]:
        products = jnp.matmul(embeddings, memory.astype(dtype).T, precision="highest")
        return jnp.take_along_axis(products, rows, axis=1) / temperature
    return jnp.einsum("bd,bkd->bk", embeddings, memory[rows].astype(dtype), precision="highest") / temperature


def first_normalizer(scores: Array, *, examples: int) -> Array:
    """Returns the normaliser Z that the first batch sets: the mean of exp(score), times the number of examples.

    Args:
      scores: Scores [batch, 1 + negatives] of the first batch.
      examples: Number of examples in the memory.

    Returns:
      Normaliser Z [], above 0.
    """
    return jnp.exp(jax.nn.logsumexp(scores) - math.log(scores.size)) * examples
