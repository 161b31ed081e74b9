"""Helpers of the losses on feature maps [batch, height, width, channels]: checks, resizing, normalisation."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from kdjax.losses._checks import as_float

Pair = tuple[Array, Array]  # the student's map and the teacher's


def as_pairs(student_features: Sequence[ArrayLike], teacher_features: Sequence[ArrayLike]) -> list[Pair]:
    """Returns pairs of one student map and one teacher map, in float32 or wider.

    Args:
      student_features: Student maps [batch, height, width, channels], from shallow to deep.
      teacher_features: Teacher maps [batch, height, width, channels], as many, from shallow to deep.

    Raises:
      ValueError: The lists are empty or differ in length, a map does not have four axes, or batch sizes differ.
    """
    if len(student_features) != len(teacher_features) or len(student_features) == 0:
        raise ValueError(
            f"student_features has {len(student_features)} maps and teacher_features {len(teacher_features)}; "
            "pass equally many of both, at least one."
        )
    pairs = [(as_float(s), as_float(t)) for s, t in zip(student_features, teacher_features, strict=True)]
    for stage, (student, teacher) in enumerate(pairs, start=1):
        if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
            raise mismatch(stage, student, teacher, "both must be [batch, height, width, channels] of one batch")
    return pairs


def as_pair(student_features: ArrayLike, teacher_features: ArrayLike) -> Pair:
    """Returns one checked pair of maps; see `as_pairs`, which takes several."""
    return as_pairs([student_features], [teacher_features])[0]


def mismatch(stage: int, student: Array, teacher: Array, problem: str) -> ValueError:
    """Returns the error for a pair of maps that do not fit each other."""
    return ValueError(f"stage {stage}: student {list(student.shape)} and teacher {list(teacher.shape)}: {problem}.")


def check_same_shape(pairs: list[Pair], axes: tuple[int, ...] = (1, 2, 3)) -> list[Pair]:
    """Returns the pairs unchanged if the two maps of each agree in the given axes.

    Raises:
      ValueError: A pair differs in one of the axes. The message has the stage and both shapes.
    """
    for stage, (student, teacher) in enumerate(pairs, start=1):
        if any(student.shape[axis] != teacher.shape[axis] for axis in axes):
            what = {(1, 2, 3): "shapes", (3,): "channels"}[axes]
            raise mismatch(stage, student, teacher, f"this loss needs equal {what}")
    return pairs


def same_size(student: Array, teacher: Array) -> Pair:
    """Returns the pair with the larger map averaged down to the smaller one's size; heights decide which is larger."""
    if student.shape[1] > teacher.shape[1]:
        return adaptive_avg_pool(student, teacher.shape[1:3]), teacher
    if student.shape[1] < teacher.shape[1]:
        return student, adaptive_avg_pool(teacher, student.shape[1:3])
    return student, teacher


def adaptive_avg_pool(x: Array, size: Sequence[int]) -> Array:
    """Returns the means of a map over the cells of a grid, as PyTorch's `adaptive_avg_pool2d` does.

    Cell i of n covers the rows floor(i h / n) to ceil((i + 1) h / n), so neighbouring cells overlap where n does not
    divide h.

    Args:
      x: Feature maps [batch, height, width, channels].
      size: Height and width of the grid.

    Returns:
      Means [batch, *size, channels].
    """
    rows, columns = (_cells(before, after, x.dtype) for before, after in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _cells(before: int, after: int, dtype: DTypeLike) -> np.ndarray:
    """Returns the weights [after, before] with which the pixels of one axis enter the mean of each cell."""
    weights = np.zeros((after, before), dtype)
    for i in range(after):
        start, stop = i * before // after, -(-(i + 1) * before // after)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def normalized(x: Array, axis: int = -1, epsilon: float = 1e-12) -> Array:
    """Returns x / max(|x|, epsilon) along an axis; a zero vector stays zero and has a finite gradient."""
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    positive = square > epsilon**2
    # Two wheres: the gradient of sqrt is infinite at 0, and 0 * inf from the branch not taken would be NaN.
    norm = jnp.sqrt(jnp.where(positive, square, 1.0))
    # Where epsilon^2 underflows, only zero vectors are not positive: 1 in place of epsilon keeps their gradient finite.
    return x / jnp.where(positive, norm, epsilon if epsilon > math.sqrt(jnp.finfo(x.dtype).tiny) else 1.0)
