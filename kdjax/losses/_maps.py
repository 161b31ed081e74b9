"""What losses on feature maps [batch, h, w, channels] share: checks of pairs, sizes made alike, safe norms."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses._checks import as_float


def as_pairs(student_features: Sequence[Any], teacher_features: Sequence[Any]) -> list[tuple[Array, Array]]:
    """Returns the pairs of maps of two lists, in float32 at least.

    Raises:
      ValueError: lists of different length or none at all, a map that is not [batch, h, w, channels], or another batch.
    """
    if len(student_features) != len(teacher_features) or len(student_features) == 0:
        raise ValueError(
            f"student_features has {len(student_features)} maps and teacher_features {len(teacher_features)}; "
            "there must be as many of both, and one at least."
        )
    pairs = [(as_float(s), as_float(t)) for s, t in zip(student_features, teacher_features, strict=True)]
    for stage, (student, teacher) in enumerate(pairs, start=1):
        if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
            fail(stage, student, teacher, "both must be [batch, height, width, channels] of one batch")
    return pairs


def as_pair(student_features: Any, teacher_features: Any) -> tuple[Array, Array]:
    """Returns one pair of maps, for a loss that takes one of each; raises as `as_pairs`."""
    return as_pairs([student_features], [teacher_features])[0]


def fail(stage: int, student: Array, teacher: Array, what: str) -> None:
    """Raises the ValueError that names a pair."""
    raise ValueError(f"stage {stage}: student {list(student.shape)} and teacher {list(teacher.shape)}: {what}.")


def same_shape(pairs: list[tuple[Array, Array]], axes: tuple[int, ...] = (1, 2, 3)) -> list[tuple[Array, Array]]:
    """Refuses pairs that differ in one of `axes`."""
    for stage, (student, teacher) in enumerate(pairs, start=1):
        if any(student.shape[axis] != teacher.shape[axis] for axis in axes):
            what = {(1, 2, 3): "shapes", (3,): "channels", (1, 2): "sizes"}[axes]
            fail(stage, student, teacher, f"this loss needs equal {what}")
    return pairs


def same_size(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Returns a pair with the larger map averaged down to the smaller one's size, told by the height."""
    if student.shape[1] > teacher.shape[1]:
        return adaptive_avg_pool(student, teacher.shape[1:3]), teacher
    if student.shape[1] < teacher.shape[1]:
        return student, adaptive_avg_pool(teacher, student.shape[1:3])
    return student, teacher


def adaptive_avg_pool(x: Array, size: Sequence[int]) -> Array:
    """Returns the means over the cells of a grid, which overlap where it does not divide the map, as in PyTorch.

    Args:
      x: [batch, height, width, channels].
      size: (height, width) of the grid; cell i of n covers floor(i h / n) to ceil((i + 1) h / n).
    """
    rows, columns = (_cells(before, after, x.dtype) for before, after in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _cells(before: int, after: int, dtype: Any) -> np.ndarray:
    """[after, before] weights of a mean over each cell."""
    weights = np.zeros((after, before), dtype)
    for i in range(after):
        start, stop = i * before // after, -(-(i + 1) * before // after)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def normalized(x: Array, axis: int = -1, epsilon: float = 1e-12) -> Array:
    """Returns x / max(|x|, epsilon) along an axis; where x is zero it stays so, with a gradient that is finite."""
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    positive = square > epsilon**2
    norm = jnp.sqrt(jnp.where(positive, square, 1.0))
    return x / jnp.where(positive, norm, epsilon if epsilon > math.sqrt(jnp.finfo(x.dtype).tiny) else 1.0)
