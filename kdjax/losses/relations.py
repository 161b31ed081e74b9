"""Losses on relations between the examples of a batch, computed from embeddings [batch, dim] of the global batch."""

import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_float
from kdjax.losses._maps import normalized


def similarity(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Computes the similarity-preserving loss |G_t - G_s|^2 / batch^2, G being f fᵀ with L2-normalised rows.

    Args:
      student_embeddings: Student vectors or maps [batch, ...], flattened to f [batch, dim].
      teacher_embeddings: Teacher vectors or maps [batch, ...], of any width.

    Returns:
      Scalar [], at least 0.

    Raises:
      ValueError: The batch sizes differ.

    References:
      Tung & Mori, 2019, "Similarity-Preserving Knowledge Distillation", eq. 4, https://arxiv.org/abs/1907.09682
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    student_gram, teacher_gram = (normalized(_product(f, f)) for f in (student, teacher))
    return jnp.sum((teacher_gram - student_gram) ** 2) / len(student) ** 2


def correlation(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Computes the correlation-congruence loss as RepDistiller does, mean_i sum_d |s - t|_(i, d) |s - t|_(i + 1, d).

    The product is that of consecutive examples of the batch, not a square, so the loss depends on the order of the
    batch. This is the form whose results the tables of distillation papers show.

    Args:
      student_embeddings: Student vectors [batch, dim], after a linear embedding.
      teacher_embeddings: Teacher vectors [batch, dim], after a linear embedding.

    Returns:
      Scalar [], at least 0; 0 for a batch of one.

    Raises:
      ValueError: The shapes differ.

    References:
      Peng, Jin, Liu, Li, Wu, Liu, Zhou & Zhang, 2019, "Correlation Congruence for Knowledge Distillation",
      https://arxiv.org/abs/1904.01802
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings, same_width=True)
    difference = student - teacher
    difference = difference * jnp.sign(difference)  # |x| with derivative 0 at 0, as in PyTorch; jnp.abs has 1 there
    return jnp.sum(difference[:-1] * difference[1:]) / max(len(student) - 1, 1)


def rkd(
    student_embeddings: Array,
    teacher_embeddings: Array,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Array:
    """Computes the relational-KD loss, Huber losses on the distances of pairs and on the angles of triples.

    Distances are divided by their mean over the batch, on each side by its own.

    Args:
      student_embeddings: Student vectors [batch, dim].
      teacher_embeddings: Teacher vectors [batch, dim], of any width.
      distance_weight: Weight of the distances' term, a mean over pairs.
      angle_weight: Weight of the angles' term, a mean over triples.

    Returns:
      Scalar [], at least 0 for weights of at least 0.

    Raises:
      ValueError: The batch sizes differ.

    References:
      Park, Kim, Lu & Cho, 2019, "Relational Knowledge Distillation", eqs. 6 and 9, https://arxiv.org/abs/1904.05068
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    distances = jnp.mean(_huber(_distances(student) - _distances(teacher)))
    angles = jnp.mean(_huber(_angles(student) - _angles(teacher)))
    return distance_weight * distances + angle_weight * angles


def _distances(x: Array) -> Array:
    """Returns the Euclidean distances [batch, batch], divided by the mean of those above 0."""
    # Differences, not |a|^2 + |b|^2 - 2 ab: vectors far from 0 would lose all digits. The floor keeps the gradient of
    # the root finite on the diagonal.
    squared = jnp.maximum(jnp.sum((x[None] - x[:, None]) ** 2, axis=2), 1e-12)
    distances = jnp.sqrt(squared) * (1 - jnp.eye(len(x), dtype=x.dtype))
    count = jnp.sum(distances > 0)
    return distances / jnp.where(count > 0, jnp.sum(distances) / jnp.maximum(count, 1), 1.0)


def _angles(x: Array) -> Array:
    """Returns the cosine [batch, batch, batch] of the angle at each example between the directions to two others."""
    unit = normalized(x[None] - x[:, None])
    return jnp.einsum("aid,ajd->aij", unit, unit, precision="highest")


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def pkt(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Computes the probabilistic-knowledge-transfer loss, a KL divergence of the batch's similarities.

    The similarity of two examples is (cosine + 1) / 2; each example's similarities are divided by their sum, which
    gives the rows p of the teacher and q of the student.

    Args:
      student_embeddings: Student vectors [batch, dim].
      teacher_embeddings: Teacher vectors [batch, dim], of any width.

    Returns:
      Mean over the batch x batch entries of p log(p / q) [], as in the papers' code; it is smaller than the mean KL
      divergence of the rows by the factor batch.

    Raises:
      ValueError: The batch sizes differ.

    References:
      Passalis & Tefas, 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", eq. 8,
      https://arxiv.org/abs/1803.10837
    """
    epsilon = 1e-7
    q, p = (_neighbours(f, epsilon) for f in _pair(student_embeddings, teacher_embeddings))
    return jnp.mean(p * jnp.log((p + epsilon) / (q + epsilon)))


def _neighbours(x: Array, epsilon: float) -> Array:
    """Returns each example's similarities to all examples as probabilities [batch, batch], rows that sum to 1."""
    square = jnp.sum(x**2, axis=1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    unit = x / (norm + epsilon)
    similarity = (_product(unit, unit) + 1) / 2
    # Rounding can make the similarity of opposite vectors slightly negative, and its logarithm NaN.
    similarity = jnp.where(similarity < 0, 0.0, similarity)
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
    """Computes the information-theoretic representation-distillation loss, a weighted sum of its two terms.

    Args:
      student_embeddings: Student vectors [batch, dim], for the mutual-information term.
      teacher_embeddings: Teacher vectors [batch, teacher dim].
      student_projections: Linear embedding of the student's vectors [batch, teacher dim], for the correlation term;
        None takes `student_embeddings`.
      alpha: Order of the entropy in the correlation term, above 0.
      correlation_weight: Weight of `itrd_correlation`.
      mutual_weight: Weight of `itrd_mutual`.

    Returns:
      Scalar [], positive or negative.

    Raises:
      ValueError: The batch sizes differ, or the projections do not have the teacher's width.

    References:
      Miles, Rodriguez & Mikolajczyk, 2022, "Information Theoretic Representation Distillation",
      https://arxiv.org/abs/2112.00459
    """
    projections = student_embeddings if student_projections is None else student_projections
    correlation_term = itrd_correlation(projections, teacher_embeddings, alpha=alpha)
    return correlation_weight * correlation_term + mutual_weight * itrd_mutual(student_embeddings, teacher_embeddings)


def itrd_correlation(student_embeddings: Array, teacher_embeddings: Array, *, alpha: float = 1.01) -> Array:
    """Computes ITRD's correlation term, log2 sum_d |c_d - 1|^(2 alpha), c_d the correlation of dimension d.

    As in the paper's code, vectors are standardised over the batch by unbiased deviations, but the product is divided
    by the batch. Equal sides therefore give c_d = 1 - 1 / batch, not 1.

    Args:
      student_embeddings: Student vectors [batch, dim].
      teacher_embeddings: Teacher vectors [batch, dim].
      alpha: Order of the entropy, above 0.

    Returns:
      Scalar [], positive or negative.

    Raises:
      ValueError: The shapes differ.

    References:
      Miles, Rodriguez & Mikolajczyk, 2022, "Information Theoretic Representation Distillation", eq. 7,
      https://arxiv.org/abs/2112.00459
    """
    student, teacher = (_standardized(f) for f in _pair(student_embeddings, teacher_embeddings, same_width=True))
    difference = jnp.abs(jnp.sum(student * teacher, axis=0) / len(student) - 1)
    positive = difference > 0
    powered = jnp.where(positive, jnp.where(positive, difference, 1.0) ** (2 * alpha), 0.0)
    # The smallest normal number keeps the logarithm finite where every dimension has correlation 1.
    return jnp.log2(jnp.maximum(jnp.sum(powered), jnp.finfo(student.dtype).tiny))


def itrd_mutual(student_embeddings: Array, teacher_embeddings: Array) -> Array:
    """Computes ITRD's mutual-information term, the sum over all entries of G_s^2 - G_st^2, G_st = G_s ∘ G_t.

    G_s and G_t are Gram matrices of cosines, and G_s and G_st are each divided by their trace.

    Args:
      student_embeddings: Student vectors [batch, dim].
      teacher_embeddings: Teacher vectors [batch, dim], of any width.

    Returns:
      Scalar [], positive or negative.

    Raises:
      ValueError: The batch sizes differ.

    References:
      Miles, Rodriguez & Mikolajczyk, 2022, "Information Theoretic Representation Distillation", eq. 10,
      https://arxiv.org/abs/2112.00459
    """
    student, teacher = (normalized(f) for f in _pair(student_embeddings, teacher_embeddings))
    student_gram = _product(student, student)
    joint_gram = student_gram * _product(teacher, teacher)
    student_gram, joint_gram = (gram / _not_zero(jnp.trace(gram)) for gram in (student_gram, joint_gram))
    return jnp.sum(student_gram**2 - joint_gram**2)


def _standardized(x: Array) -> Array:
    """Returns the columns of [batch, dim] with mean 0 and unbiased deviation 1; constant columns become zeros."""
    # Subtracting one row first makes a constant column exactly 0. Its mean alone may be off by a rounding error, which
    # the division by the deviation would blow up.
    x = x - lax.stop_gradient(x[:1])
    centred = x - jnp.mean(x, axis=0)
    variance = jnp.sum(centred**2, axis=0) / max(len(x) - 1, 1)
    positive = variance > 0
    return jnp.where(positive, centred / jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _not_zero(x: Array) -> Array:
    return jnp.where(x != 0, x, 1.0)


def _product(a: Array, b: Array) -> Array:
    """Returns a bᵀ in full precision, which a matrix product does not have on a TPU by default."""
    return jnp.matmul(a, b.T, precision="highest")


def _pair(student: Array, teacher: Array, same_width: bool = False) -> tuple[Array, Array]:
    """Returns both sides flattened to [batch, dim], in float32 or wider.

    Raises:
      ValueError: An array has no axis beside the batch, batch sizes differ, or widths do where they must not.
    """
    student, teacher = as_float(student), as_float(teacher)
    shapes = f"student_embeddings {list(student.shape)} and teacher_embeddings {list(teacher.shape)}"
    if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(f"{shapes} must be [batch, dim] of one batch.")
    student, teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    if same_width and student.shape != teacher.shape:
        raise ValueError(f"{shapes} must have one shape; a linear embedding gives both the same width.")
    return student, teacher
