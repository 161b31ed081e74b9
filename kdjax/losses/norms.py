"""KD++: a loss on the norm and the direction of a student's vectors.

Reference: Wang et al., 2024, "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
https://arxiv.org/abs/2305.17007
"""

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float, as_targets
from kdjax.losses._maps import normalized


def nd(student_vectors: Array, teacher_vectors: Array, class_means: Array, labels: Array) -> Array:
    """Computes the norm-and-direction loss of KD++, 1 - s . c / (|c| max(|s|, |t|)).

    It asks the student's vector s to point along the teacher's class mean c, and to be as long as the teacher's vector.

    Args:
      student_vectors: Vectors s that the student's classifier reads, [batch, dim].
      teacher_vectors: Vectors t that the teacher's classifier reads, [batch, dim].
      class_means: Means of the teacher's vectors in each class, [classes, dim].
      labels: Integer labels [batch], or label probabilities [batch, classes], which mix the means.

    Returns:
      Loss of each example [batch], in [0, 2]; 1 where c or s is 0.

    Raises:
      ValueError: The shapes do not fit each other.

    References:
      Wang et al., 2024, "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
      https://arxiv.org/abs/2305.17007
    """
    student, teacher, means = as_float(student_vectors), as_float(teacher_vectors), as_float(class_means)
    if student.ndim != 2 or student.shape != teacher.shape or means.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"student_vectors {list(student.shape)} and teacher_vectors {list(teacher.shape)} must have one shape "
            f"[batch, dim], and class_means {list(means.shape)} must be [classes, dim]; the loss is for networks whose "
            "vectors are equally wide."
        )
    targets, valid = as_targets(labels, jnp.zeros((student.shape[0], means.shape[0]), means.dtype))
    wanted = jnp.matmul(jnp.where(valid[:, None], targets, 0), means, precision="highest")
    length = jnp.maximum(_norm(student), _norm(teacher))
    along = jnp.sum(student * normalized(wanted), axis=-1)
    return 1 - along / jnp.where(length > 0, length, 1)


def _norm(x: Array) -> Array:
    """Returns the norms of the rows of x, with a gradient of 0 at 0."""
    square = jnp.sum(x**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
