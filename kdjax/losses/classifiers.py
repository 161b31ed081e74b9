"""Losses on what a network's classifier makes of a map: its own map's parts, or the map of the other network.

The classifiers themselves are applied by the adapters: a loss sees their logits.
"""

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float, as_targets, check_range, of_all_classes
from kdjax.losses._maps import adaptive_avg_pool, as_pair, check_same_shape, same_size
from kdjax.losses.logits import kd


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
    crossed, taught = as_float(crossed_logits), as_float(of_all_classes(teacher_logits, "srrl"))
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


def sdd(student_regions: Array, teacher_regions: Array, labels: Array, *, temperature: float = 4.0) -> Array:
    """Computes SDD with KD: the mean of w T^2 KL(p_T || q_T) over the regions of a map, each with logits of its own.

    The first region is the whole map, with w = 1. For any other one w = 2 where the teacher's decision there and its
    decision on the whole map are not both right or both wrong, and 1 elsewhere.

    Args:
      student_regions: Student logits [batch, regions, classes], the whole map first.
      teacher_regions: Teacher logits [batch, regions, classes] of the same regions.
      labels: Integer labels [batch] or label probabilities [batch, classes], whose largest one is then the truth.
      temperature: Temperature T of both sides, above 0.

    Returns:
      Loss of each example [batch] in nats, at least 0. With one region it is KD.

    Raises:
      ValueError: The shapes do not fit each other, or the temperature is out of range.

    References:
      Wei, Luo & Luo, 2024, "Scaled Decoupled Distillation", https://arxiv.org/abs/2403.13512
    """
    check_range("temperature", temperature)
    student, teacher = as_float(student_regions), as_float(teacher_regions)
    if student.ndim != 3 or student.shape != teacher.shape or 0 in student.shape:
        raise ValueError(
            f"student_regions {list(student.shape)} and teacher_regions {list(teacher.shape)} must have one shape "
            "[batch, regions, classes]."
        )
    targets, valid = as_targets(labels, teacher[:, 0])
    truth = jnp.where(valid, jnp.argmax(targets, axis=-1), -1)
    right = jnp.argmax(teacher, axis=-1) == truth[:, None]
    weights = jnp.where(right != right[:, :1], 2, 1)
    return jnp.mean(weights * kd(student, teacher, temperature=temperature), axis=1)


def catkd(student_class_maps: Array, teacher_class_maps: Array, *, size: int = 2) -> Array:
    """Computes CAT-KD's loss, the mean squared difference of class activation maps that are averaged to a small grid.

    Args:
      student_class_maps: What the student's classifier makes of every position of its last map, [batch, height, width,
        classes].
      teacher_class_maps: The teacher's, [batch, height, width, classes]; the sizes of the two may differ.
      size: Side of the grid, an integer of at least 1; 1 compares the networks' logits.

    Returns:
      Mean over all elements [], at least 0. The paper's weights are for maps that are not normalised, as these are.

    Raises:
      ValueError: The numbers of classes differ, or the size is out of range.

    References:
      Guo, Yan, Li & Lin, 2023, "Class Attention Transfer Based Knowledge Distillation",
      https://arxiv.org/abs/2304.12777
    """
    check_range("size", size)
    ((student, teacher),) = check_same_shape([as_pair(student_class_maps, teacher_class_maps)], axes=(3,))
    grids = (adaptive_avg_pool(x, (size, size)) for x in (student, teacher))
    return jnp.mean((next(grids) - next(grids)) ** 2)
