"""Losses that compare the examples of a batch with one another, on embeddings [batch, dim] of the global batch."""

import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_float
from kdjax.losses._maps import normalized


def similarity(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Similarity preserving: |G_t - G_s|^2 / batch^2, rows of G = f fᵀ normalised (Tung & Mori, 2019, eq. 4).

    Args:
      student_embeddings: [batch, ...], vectors or maps, flattened.
      teacher_embeddings: [batch, ...], of any other width.

    Returns:
      [] scalar.

    Raises:
      ValueError: another batch.
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    ours, theirs = (normalized(_product(f, f)) for f in (student, teacher))
    return jnp.sum((theirs - ours) ** 2) / len(student) ** 2


def correlation(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Correlation congruence as its table was made: mean over i of sum_d |s - t|_i |s - t|_(i+1) (Peng et al., 2019).

    Args:
      student_embeddings: [batch, dim], after a linear embedding; the product is of consecutive examples.
      teacher_embeddings: [batch, dim], likewise.

    Returns:
      [] scalar; 0 for a batch of one.

    Raises:
      ValueError: the shapes differ.
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings, same_width=True)
    difference = student - teacher
    difference = difference * jnp.sign(difference)  # PyTorch's derivative of |x| at 0 is 0, that of jnp.abs 1
    return jnp.sum(difference[:-1] * difference[1:]) / max(len(student) - 1, 1)


def rkd(
    student_embeddings: Array,
    teacher_embeddings: Array,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Array:
    """Relational KD: Huber loss of distances over their mean, and of angles of triples (Park et al., 2019, eqs. 6, 9).

    Args:
      student_embeddings: [batch, dim].
      teacher_embeddings: [batch, dim], of any other width.
      distance_weight: of the distances' term, a mean over pairs.
      angle_weight: of the angles' term, a mean over triples.

    Returns:
      [] scalar.

    Raises:
      ValueError: another batch.
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    distances = jnp.mean(_huber(_distances(student) - _distances(teacher)))
    angles = jnp.mean(_huber(_angles(student) - _angles(teacher)))
    return distance_weight * distances + angle_weight * angles


def _distances(x: Array) -> Array:
    """Euclidean distances over the mean of those above 0."""
    squared = jnp.maximum(jnp.sum((x[None] - x[:, None]) ** 2, axis=2), 1e-12)
    distances = jnp.sqrt(squared) * (1 - jnp.eye(len(x), dtype=x.dtype))
    count = jnp.sum(distances > 0)
    return distances / jnp.where(count > 0, jnp.sum(distances) / jnp.maximum(count, 1), 1.0)


def _angles(x: Array) -> Array:
    """Cosines at each example of the angle between two others, [batch, batch, batch]."""
    unit = normalized(x[None] - x[:, None])
    return jnp.einsum("aid,ajd->aij", unit, unit, precision="highest")


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def pkt(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Probabilistic knowledge transfer: KL of the batch's similarities (Passalis & Tefas, 2018, eq. 8).

    Args:
      student_embeddings: [batch, dim].
      teacher_embeddings: [batch, dim], of any other width.

    Returns:
      [] mean over the batch x batch entries of p log(p / q), p and q rows of (cosine + 1) / 2 that sum to 1.

    Raises:
      ValueError: another batch.
    """
    epsilon = 1e-7
    q, p = (_neighbours(f, epsilon) for f in _pair(student_embeddings, teacher_embeddings))
    return jnp.mean(p * jnp.log((p + epsilon) / (q + epsilon)))


def _neighbours(x: Array, epsilon: float) -> Array:
    square = jnp.sum(x**2, axis=1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    unit = x / (norm + epsilon)
    similarity = (_product(unit, unit) + 1) / 2
    similarity = jnp.where(similarity < 0, 0.0, similarity)  # rounding, of opposite ones: the logarithm would be NaN
    return similarity / jnp.sum(similarity, axis=1, keepdims=True)


def itrd(
    student_embeddings: Array,
    teacher_embeddings: Array,
    student_projections: Array | None = None,
    *,
    alpha: float = 1.01,
    correlation_weight: float = 2.0,
    mutual_weight: float = 1.0,
) -> Array:
    """Information-theoretic distillation: its correlation and its mutual-information term (Miles et al., 2022).

    Args:
      student_embeddings: [batch, dim], for the mutual term.
      teacher_embeddings: [batch, teacher's dim].
      student_projections: [batch, teacher's dim], a linear embedding, for the correlation; None takes the embeddings.
      alpha: of the entropy in the correlation term, above 0.
      correlation_weight: of `itrd_correlation`.
      mutual_weight: of `itrd_mutual`.

    Returns:
      [] scalar, of either sign.

    Raises:
      ValueError: another batch, or projections of another width than the teacher's.
    """
    projections = student_embeddings if student_projections is None else student_projections
    correlation_term = itrd_correlation(projections, teacher_embeddings, alpha=alpha)
    return correlation_weight * correlation_term + mutual_weight * itrd_mutual(student_embeddings, teacher_embeddings)


def itrd_correlation(student_embeddings: Array, teacher_embeddings: Array, *, alpha: float = 1.01) -> Array:
    """log2 of the sum over dimensions of |c - 1|^(2 alpha), c the batch's correlations (Miles et al., 2022, eq. 7).

    Args:
      student_embeddings: [batch, dim].
      teacher_embeddings: [batch, dim].
      alpha: above 0.

    Returns:
      [] scalar. Deviations are unbiased and the product is divided by the batch, so equal sides give c = 1 - 1 / batch.

    Raises:
      ValueError: the shapes differ.
    """
    student, teacher = (_standardized(f) for f in _pair(student_embeddings, teacher_embeddings, same_width=True))
    difference = jnp.abs(jnp.sum(student * teacher, axis=0) / len(student) - 1)
    positive = difference > 0
    powered = jnp.where(positive, jnp.where(positive, difference, 1.0) ** (2 * alpha), 0.0)
    return jnp.log2(jnp.maximum(jnp.sum(powered), jnp.finfo(student.dtype).tiny))


def itrd_mutual(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """sum of G_s^2 - G_st^2, G_st = G_s ∘ G_t, Gram matrices of cosines over their traces (Miles et al., 2022, eq. 10).

    Args:
      student_embeddings: [batch, dim].
      teacher_embeddings: [batch, dim], of any other width.

    Returns:
      [] scalar.

    Raises:
      ValueError: another batch.
    """
    student, teacher = (normalized(f) for f in _pair(student_embeddings, teacher_embeddings))
    ours = _product(student, student)
    both = ours * _product(teacher, teacher)
    ours, both = (gram / _not_zero(jnp.trace(gram)) for gram in (ours, both))
    return jnp.sum(ours**2 - both**2)


def _standardized(x: Array) -> Array:
    x = x - lax.stop_gradient(x[:1])  # so that a constant column is zeros, not what rounding leaves of it
    centred = x - jnp.mean(x, axis=0)
    variance = jnp.sum(centred**2, axis=0) / max(len(x) - 1, 1)
    positive = variance > 0
    return jnp.where(positive, centred / jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _not_zero(x: Array) -> Array:
    return jnp.where(x != 0, x, 1.0)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b.T, precision="highest")


def _pair(student: Array, teacher: Array, same_width: bool = False) -> tuple[Array, Array]:
    student, teacher = as_float(student), as_float(teacher)
    shapes = f"student_embeddings {list(student.shape)} and teacher_embeddings {list(teacher.shape)}"
    if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(f"{shapes} must be [batch, dim] of one batch.")
    student, teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    if same_width and student.shape != teacher.shape:
        raise ValueError(f"{shapes} must have one shape; a linear embedding makes them alike.")
    return student, teacher
