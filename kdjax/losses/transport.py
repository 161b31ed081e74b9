"""WKD-L: the cost of carrying a student's probabilities to a teacher's, where similar classes are near each other.

Reference: Lv, Yang & Li, 2024, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
https://arxiv.org/abs/2412.08139
"""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_class_matrix, as_float, as_logit_pair, check_range, sound_rows
from kdjax.losses._labels import is_label_of, taken_apart
from kdjax.losses._maps import normalized

# The paper's code adds it to costs and to the divisors of the iteration.
_EPSILON = 1e-8


def wkdl(
    student_logits: Array,
    teacher_logits: Array,
    class_costs: Array,
    labels: Array,
    *,
    gamma: float = 600.0,
    label_weight: float = 1.0,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Array:
    """Computes the loss of WKD-L, -label_weight p_y log q_y + gamma sum_ij F_ij C_ij.

    F carries the student's distribution over the classes other than the label y (rows i) to the teacher's (columns j),
    both at temperature T. With K = exp(-C / regularization) it is u_i K_ij v_j, where v = p / (K^T u + 1e-8) and
    u = q / (K v + 1e-8) take turns, from u = 1 / (classes - 1). The gradient flows through these iterations. The rows
    of F add up to q, its columns nearly to p.

    A class of probability 0 has u = v = 0, so that leaving out the label needs no matrix of its own for each example,
    and nothing of the size [..., classes, classes] is held.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      class_costs: Costs C of carrying one class to another, [classes, classes]; see `relation_costs`. Those below 0
        count as 0, and 1e-8 is added to all.
      labels: Integer labels y [...] in [0, classes).
      gamma: Weight of the costs, above 0.
      label_weight: Weight of the label's term; the paper's is 1.
      temperature: Temperature T of the classes other than the label, above 0; the label's term has temperature 1.
      regularization: Strength of the entropy that makes F smooth, above 0.
      iterations: Number of updates of u and v, at least 1.

    Returns:
      Loss of each example [...], at least 0 for weights of at least 0; NaN for a label outside [0, classes). It is not
      0 where both sides are equal.

    Raises:
      ValueError: The shapes do not match, or a hyper-parameter is out of range.

    References:
      Lv, Yang & Li, 2024, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
      https://arxiv.org/abs/2412.08139
    """
    for name, value in (("gamma", gamma), ("temperature", temperature), ("regularization", regularization)):
        check_range(name, value)
    check_range("iterations", iterations)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "wkdl"))
    is_label, exists = is_label_of(labels, student)
    costs = as_class_matrix(class_costs, student, "class_costs")
    costs = jnp.where(costs > 0, costs, 0) + _EPSILON
    (_, own, own_good), (_, other, other_good) = (taken_apart(x, is_label, temperature) for x in (student, teacher))
    near, start = jnp.exp(-costs / regularization), jnp.where(is_label, 0, 1 / (student.shape[-1] - 1))
    u, v = _scaled(jax.nn.softmax(own), jax.nn.softmax(other), near, start.astype(student.dtype), iterations)
    carried = jnp.sum(u * _product(v, (near * costs).T), axis=-1)
    value = label_weight * _label_term(student, teacher, is_label) + gamma * carried
    return jnp.where(exists & good & own_good & other_good, value, jnp.nan)


def label_term(student_logits: Array, teacher_logits: Array, labels: Array) -> Array:
    """Computes -p_y log q_y, the cross-entropy with the label times the teacher's probability of it.

    It is a term of WKD-L and of NKD, by itself for weights that differ from those of the other terms.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels y [...] in [0, classes).

    Returns:
      Loss of each example [...] in nats, at least 0; NaN for a label outside [0, classes).

    Raises:
      ValueError: The shapes differ, or the labels are not integers [...].

    References:
      Lv, Yang & Li, 2024, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
      https://arxiv.org/abs/2412.08139
    """
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "label_term"))
    is_label, exists = is_label_of(labels, student)
    return jnp.where(exists & good, _label_term(student, teacher, is_label), jnp.nan)


def relation_costs(vectors: Array, counts: Array, *, sharpness: float = 1.0) -> Array:
    """Computes the costs 1 - exp(-sharpness (1 - CKA)) of carrying one class to another, for `wkdl`.

    The linear CKA of two classes compares how the examples of each are arranged: it is the cosine of their centred
    matrices of inner products, example for example. The first examples of all classes are compared, as many as the
    smallest class has.

    Args:
      vectors: The teacher's vectors of examples of each class, [classes, examples, dim].
      counts: Number of examples that each class has there, [classes]; what follows them is not read.
      sharpness: How fast the costs rise with the distance 1 - CKA, above 0.

    Returns:
      Costs [classes, classes], symmetric, 0 on the diagonal up to rounding, and below 1.

    Raises:
      ValueError: The shapes do not match, or the sharpness is out of range.

    References:
      Kornblith, Norouzi, Lee & Hinton, 2019, "Similarity of Neural Network Representations Revisited",
      https://arxiv.org/abs/1905.00414
    """
    check_range("sharpness", sharpness)
    vectors = as_float(vectors)
    counts = jnp.asarray(counts)
    if vectors.ndim != 3 or counts.shape != vectors.shape[:1]:
        raise ValueError(
            f"vectors {list(vectors.shape)} must be [classes, examples, dim] and counts {list(counts.shape)} [classes]."
        )
    fewest = jnp.min(counts)
    counted = (jnp.arange(vectors.shape[1]) < fewest)[:, None]
    vectors = jnp.where(counted, vectors, 0)
    mean = jnp.sum(vectors, axis=1, keepdims=True) / jnp.maximum(fewest, 1).astype(vectors.dtype)
    centred = jnp.where(counted, vectors - mean, 0)
    grams = jnp.einsum("cid,cjd->cij", centred, centred, precision="highest").reshape(len(vectors), -1)
    unit = normalized(grams)
    return -jnp.expm1(-sharpness * (1 - _product(unit, unit.T)))


def _scaled(q: Array, p: Array, near: Array, u: Array, iterations: int) -> tuple[Array, Array]:
    """Returns the factors u and v [..., classes] of the rows and columns of `near` after the iterations."""
    v = u
    for _ in range(iterations):
        v = p / (_product(u, near) + _EPSILON)
        u = q / (_product(v, near.T) + _EPSILON)
    return u, v


def _label_term(student: Array, teacher: Array, is_label: Array) -> Array:
    own = jnp.sum(jnp.where(is_label, jax.nn.log_softmax(student), 0), axis=-1)
    return -jnp.sum(jnp.where(is_label, jax.nn.softmax(teacher), 0), axis=-1) * own


def _product(a: Array, b: Array) -> Array:
    """Returns a b in full precision, which a matrix product does not have on a TPU by default."""
    return jnp.matmul(a, b, precision="highest")
