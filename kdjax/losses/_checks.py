"""Checks that every loss makes on its arguments: shapes, ranges of hyper-parameters, floating-point precision."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike


class Range(NamedTuple):
    """The values that a hyper-parameter may take.

    Attributes:
      holds: Function of a value that returns whether the value is allowed.
      words: The same condition in words, for error messages.
    """

    holds: Callable[[Any], bool]
    words: str


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer)


POSITIVE = Range(lambda value: 0 < value < math.inf, "above 0")

# Hyper-parameter -> its range. A hyper-parameter without a row may take any value.
RANGES = {
    "temperature": POSITIVE,
    "gamma": POSITIVE,
    "order": POSITIVE,
    "eta": Range(lambda value: 0 <= value <= 1, "in [0, 1]"),
    "label_smoothing": Range(lambda value: 0 <= value < 1, "in [0, 1)"),
    "num_top": Range(lambda value: _is_integer(value) and value >= 2, "an integer, at least 2"),
    "exponent": POSITIVE,
    "p1": POSITIVE,
    "p2": POSITIVE,
    "margin": POSITIVE,
    "k": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "space": Range(lambda value: value in ("probs", "logits"), "'probs' or 'logits'"),
    "reduction": Range(lambda value: value in ("class_sum", "class_mean"), "'class_sum' or 'class_mean'"),
    "normalize": Range(lambda value: value in ("none", "batch_mean"), "'none' or 'batch_mean'"),
}


def check_range(name: str, value: Any) -> None:
    """Refuses a hyper-parameter outside its range.

    A traced value is not checked, since it has no value while a function is compiled. A name without a range in RANGES
    passes too.

    Args:
      name: Name of the hyper-parameter.
      value: Its value.

    Raises:
      ValueError: The value is out of range. The message has the name, the range and the value.
    """
    if name not in RANGES or isinstance(value, Tracer):
        return
    holds, words = RANGES[name]
    try:
        # bool is a subclass of int: True would pass as the number 1.
        allowed = bool(holds(value)) and not isinstance(value, bool)
    except (TypeError, ValueError):  # The comparison fails for a string or for an array of several numbers.
        allowed = False
    if not allowed:
        raise ValueError(f"{name} must be {words}, not {value!r}.")


def as_float(array: ArrayLike) -> Array:
    """Returns the array in its own floating-point type, or in float32 if that type is coarser or an integer."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_logits(logits: ArrayLike, name: str = "logits") -> Array:
    """Returns logits [batch, classes] in float32 or wider.

    Args:
      logits: Array to check.
      name: Name of the argument, for the error message.

    Raises:
      ValueError: The array does not have two axes, or has no class. The message has its shape.
    """
    logits = as_float(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must be [batch, classes], not {_show(logits)}.")
    return logits


def as_logit_pair(student_logits: ArrayLike, teacher_logits: ArrayLike) -> tuple[Array, Array]:
    """Returns the student's and the teacher's logits, both [batch, classes] and of one shape.

    Raises:
      ValueError: One of the two is not [batch, classes], or their shapes differ. The message has both shapes.
    """
    student, teacher = as_logits(student_logits, "student_logits"), as_logits(teacher_logits, "teacher_logits")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits {_show(student)} and teacher_logits {_show(teacher)} must have one shape [batch, classes]."
        )
    return student, teacher


def as_targets(labels: ArrayLike, logits: Array) -> tuple[Array, Array]:
    """Returns target probabilities [batch, classes], and whether each example's label is a valid class [batch].

    Args:
      labels: Integer labels [batch] or label probabilities [batch, classes].
      logits: Logits [batch, classes] that the targets belong to.

    Raises:
      ValueError: The labels have another shape or type. The message has both shapes.
    """
    labels = jnp.asarray(labels)
    batch, classes = logits.shape
    if labels.shape == (batch,) and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, classes, dtype=logits.dtype), (labels >= 0) & (labels < classes)
    if labels.shape == (batch, classes):
        return as_float(labels), jnp.ones(batch, bool)
    raise ValueError(
        f"labels must be integers [batch] or probabilities [batch, classes], not {labels.dtype} {_show(labels)} "
        f"beside logits {_show(logits)}."
    )


def as_mask(mask: ArrayLike | None, logits: Array) -> Array:
    """Returns a boolean mask [batch]; None becomes a mask that is true everywhere.

    Args:
      mask: Mask [batch], or None.
      logits: Array [batch, ...] whose batch size the mask must have.

    Raises:
      ValueError: The mask has another shape. The message has both shapes.
    """
    if mask is None:
        return jnp.ones(logits.shape[0], bool)
    mask = jnp.asarray(mask)
    if mask.shape != logits.shape[:1]:
        raise ValueError(f"mask must be [batch], not {_show(mask)} beside logits {_show(logits)}.")
    return mask.astype(bool)


def expectation(probs: Array, values: Array) -> Array:
    """Returns the sum of `probs * values` over the last axis, where a class of probability 0 contributes 0.

    A logarithm is -inf where a probability is 0, and 0 * inf is NaN. The value is replaced before the product, so that
    the gradient is finite as well.
    """
    absent = (probs == 0) & ~jnp.isfinite(values)
    return jnp.sum(probs * jnp.where(absent, 0, values), axis=-1)


def add_up(terms: list[Array]) -> Array:
    """Returns the sum of at least one array of one shape, from left to right."""
    return sum(terms[1:], terms[0])


def _show(array: Array) -> str:
    return str(list(array.shape))
