"""Losses on what a network's classifier makes of a map: its own map's parts, or the map of the other network.

The classifiers themselves are applied by the adapters: a loss sees their logits.
"""

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float
from kdjax.losses._maps import as_pair, check_same_shape, same_size


def srrl(
    student_features: Array,
    teacher_features: Array,
    crossed_logits: Array,
    teacher_logits: Array,
    *,
    logit_weight: float = 1.0,
) -> Array:
    """Computes SRRL: squared differences of the mean vectors of two maps, and of the teacher's logits of both.

    Args:
      student_features: Student map [batch, height, width, channels], already connected to the teacher's channels.
      teacher_features: Teacher map [batch, height, width, channels]; the sizes of the two maps may differ.
      crossed_logits: What the teacher's classifier makes of the mean of `student_features`, [batch, classes].
      teacher_logits: What it makes of the teacher's own map, [batch, classes].
      logit_weight: Weight of the difference of the logits.

    Returns:
      Mean over examples and channels plus `logit_weight` times the mean over examples and classes [], at least 0.

    Raises:
      ValueError: The numbers of channels or the shapes of the logits differ.

    References:
      Yang, Martinez, Bulat & Tzimiropoulos, 2021, "Knowledge Distillation via Softmax Regression Representation
      Learning", ICLR 2021.
    """
    ((student, teacher),) = check_same_shape([as_pair(student_features, teacher_features)], axes=(3,))
    crossed, taught = as_float(crossed_logits), as_float(teacher_logits)
    if crossed.shape != taught.shape:
        raise ValueError(
            f"crossed_logits {list(crossed.shape)} and teacher_logits {list(taught.shape)} must have one shape."
        )
    vectors = jnp.mean((jnp.mean(student, axis=(1, 2)) - jnp.mean(teacher, axis=(1, 2))) ** 2)
    return vectors + logit_weight * jnp.mean((crossed - taught) ** 2)


def simkd(student_features: Array, teacher_features: Array) -> Array:
    """Computes SimKD's loss, the mean squared difference of a student's projected map and the teacher's last map.

    The projector is a part of the student, which ends in the teacher's classifier; see the network `simkd`.

    Args:
      student_features: Projected student map [batch, height, width, channels], with the teacher's channels. The larger
        map of the pair is averaged down to the smaller one's size.
      teacher_features: Teacher map [batch, height, width, channels].

    Returns:
      Mean over all elements [], at least 0.

    Raises:
      ValueError: The numbers of channels differ.

    References:
      Chen, Mei, Zhang, Wang, Feng & Chen, 2022, "Knowledge Distillation with the Reused Teacher Classifier",
      https://arxiv.org/abs/2203.14001
    """
    ((student, teacher),) = check_same_shape([same_size(*as_pair(student_features, teacher_features))], axes=(3,))
    return jnp.mean((student - teacher) ** 2)
