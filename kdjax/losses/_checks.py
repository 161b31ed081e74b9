"""Checks that every loss makes on its arguments: shapes, ranges of hyper-parameters, floating-point precision."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from kdjax.types import Sampled, TopK


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
SHARE = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
FINITE = Range(lambda value: -math.inf < value < math.inf, "a finite number")

# Hyper-parameter, or 'loss.hyper-parameter' where it is that loss's alone -> its range. One without a row may take any
# value.
RANGES = {
    "temperature": POSITIVE,
    "gamma": POSITIVE,
    "order": POSITIVE,
    "eta": SHARE,
    "skew": SHARE,
    "share": SHARE,
    "sharpness": POSITIVE,
    "regularization": POSITIVE,
    "iterations": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "images": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "copies": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "jensen_shannon.beta": SHARE,
    "alpha_beta.alpha": FINITE,
    "alpha_beta.beta": FINITE,
    "label_smoothing": Range(lambda value: 0 <= value < 1, "in [0, 1)"),
    "num_top": Range(lambda value: _is_integer(value) and value >= 2, "an integer, at least 2"),
    "exponent": POSITIVE,
    "scale": POSITIVE,
    "label_temperature": POSITIVE,
    "teacher_temperature": POSITIVE,
    "p1": POSITIVE,
    "p2": POSITIVE,
    "margin": POSITIVE,
    "q": SHARE,
    "momentum": SHARE,
    "floor": Range(lambda value: 0 <= value < 1, "in [0, 1)"),
    "teacher_smoothing": SHARE,
    "average": Range(lambda value: value in ("mean", "released"), "'mean' or 'released'"),
    "direction": Range(lambda value: value in ("to_branch", "to_teacher"), "'to_branch' or 'to_teacher'"),
    "size": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "vitkd.masked": Range(lambda value: 0 < value < 1, "in (0, 1)"),
    "contrast_temperature": POSITIVE,
    "keep_transformed": SHARE,
    "keep_contrast": SHARE,
    "ctkd.low": POSITIVE,
    "ctkd.span": POSITIVE,
    "ctkd.epochs": POSITIVE,
    "levels": Range(lambda value: _is_integer(value) and 1 <= value <= 3, "1, 2 or 3"),
    "k": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "chunk": Range(lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "space": Range(lambda value: value in ("probs", "logits"), "'probs' or 'logits'"),
    "reduction": Range(lambda value: value in ("class_sum", "class_mean"), "'class_sum' or 'class_mean'"),
    "normalize": Range(lambda value: value in ("none", "batch_mean"), "'none' or 'batch_mean'"),
    "mode": Range(lambda value: value in ("tail", "renormalize", "zero"), "'tail', 'renormalize' or 'zero'"),
}

# Loss -> what its hyper-parameters must be together.
COMBINATIONS = {
    "alpha_beta": Range(
        lambda values: (values["alpha"], values["beta"]) != (1, -1),
        "other than alpha 1 with beta -1, where the divergence explodes",
    ),
}


def check_range(name: str, value: Any, loss: str = "") -> None:
    """Refuses a hyper-parameter outside its range.

    A traced value is not checked, since it has no value while a function is compiled. A name without a range in RANGES
    passes too.

    Args:
      name: Name of the hyper-parameter.
      value: Its value.
      loss: Name of the loss, for ranges that are one loss's alone.

    Raises:
      ValueError: The value is out of range. The message has the name, the range and the value.
    """
    key = f"{loss}.{name}" if f"{loss}.{name}" in RANGES else name
    if key not in RANGES or isinstance(value, Tracer):
        return
    holds, words = RANGES[key]
    try:
        # bool is a subclass of int: True would pass as the number 1.
        allowed = bool(holds(value)) and not isinstance(value, bool)
    except (TypeError, ValueError):  # The comparison fails for a string or for an array of several numbers.
        allowed = False
    if not allowed:
        raise ValueError(f"{name} must be {words}, not {value!r}.")


def check_combination(loss: str, values: Mapping[str, Any]) -> None:
    """Refuses hyper-parameters of a loss that do not go together; traced values are not checked.

    Args:
      loss: Name of the loss.
      values: Name -> value of at least the hyper-parameters in the loss's row of COMBINATIONS.

    Raises:
      ValueError: They are not what COMBINATIONS says. The message has the loss and the condition.
    """
    if loss not in COMBINATIONS or any(isinstance(value, Tracer) for value in values.values()):
        return
    holds, words = COMBINATIONS[loss]
    if not holds(values):
        raise ValueError(f"the hyper-parameters of '{loss}' must be {words}.")


def as_float(array: ArrayLike) -> Array:
    """Returns the array in its own floating-point type, or in float32 if that type is coarser or an integer."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_logits(logits: ArrayLike, name: str = "logits") -> Array:
    """Returns logits [..., classes] in float32 or wider.

    Args:
      logits: Array to check.
      name: Name of the argument, for the error message.

    Raises:
      ValueError: The array has no axis, or no class. The message has its shape.
    """
    logits = as_float(logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} must be [..., classes], not {_show(logits)}.")
    return logits


def as_logit_pair(
    student_logits: ArrayLike, teacher_logits: ArrayLike | TopK, loss: str = "this loss"
) -> tuple[Array, Array]:
    """Returns the student's and the teacher's logits, both [..., classes] and of one shape.

    Args:
      student_logits: Student logits.
      teacher_logits: Teacher logits of all classes.
      loss: Name of the loss, for the refusal of a top-k teacher.

    Raises:
      ValueError: One of the two is not [..., classes], or their shapes differ; the message has both shapes. Or the
        teacher is known by its top classes alone.
    """
    taught = of_all_classes(teacher_logits, loss)
    student, teacher = as_logits(student_logits, "student_logits"), as_logits(taught, "teacher_logits")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits {_show(student)} and teacher_logits {_show(teacher)} must have one shape [..., classes]."
        )
    return student, teacher


def of_all_classes(teacher_logits: ArrayLike | TopK | Sampled, loss: str) -> ArrayLike:
    """Returns the teacher's logits, or refuses a part of its classes by a ValueError with the name of the loss."""
    if isinstance(teacher_logits, Sampled):
        raise ValueError(f"{loss} takes no sampled teacher: only forward_kl and cross_entropy are unbiased with one.")
    if isinstance(teacher_logits, TopK):
        raise ValueError(
            f"{loss} needs every class of the teacher, not its top classes alone; the divergences take them."
        )
    return teacher_logits


def as_targets(labels: ArrayLike, logits: Array) -> tuple[Array, Array]:
    """Returns target probabilities [..., classes], and whether each label is one of the classes [...].

    Args:
      labels: Integer labels [...] or label probabilities [..., classes].
      logits: Logits [..., classes] that the targets belong to.

    Raises:
      ValueError: The labels have another shape or type. The message has both shapes.
    """
    labels = jnp.asarray(labels)
    *leading, classes = logits.shape
    if labels.shape == (*leading,) and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, classes, dtype=logits.dtype), (labels >= 0) & (labels < classes)
    if labels.shape == logits.shape:
        return as_float(labels), jnp.ones(leading, bool)
    raise ValueError(
        f"labels must be integers {leading} or probabilities {_show(logits)} for logits {_show(logits)}, "
        f"not {labels.dtype} {_show(labels)}."
    )


def as_where(where: ArrayLike | None, logits: Array) -> Array:
    """Returns a boolean array [...] of what counts; None counts everything.

    Args:
      where: Boolean array [...], or None.
      logits: Logits [..., classes] whose leading axes it must have.

    Raises:
      ValueError: It has another shape. The message has both shapes.
    """
    leading = logits.shape[:-1]
    if where is None:
        return jnp.ones(leading, bool)
    where = jnp.asarray(where)
    if where.shape != leading:
        raise ValueError(f"where must be {list(leading)} for logits {_show(logits)}, not {_show(where)}.")
    return where.astype(bool)


def sound_rows(*sides: Array) -> tuple[tuple[Array, ...], Array]:
    """Returns logits [..., classes] of which every row is a distribution, and where all sides had one [...].

    A row with NaN, with inf or with -inf alone becomes 0, 1, 2, ..., so that it spoils neither what is computed of the
    whole batch nor the gradient of a caller who leaves its loss out.
    """
    good = jnp.all(jnp.stack([jnp.isfinite(jnp.max(side, axis=-1)) for side in sides]), axis=0)
    classes = jnp.arange(sides[0].shape[-1])
    return tuple(jnp.where(good[..., None], side, classes.astype(side.dtype)) for side in sides), good


def as_class_matrix(matrix: Array, logits: Array, name: str) -> Array:
    """Returns a matrix [classes, classes] in the type of logits [..., classes], and refuses another shape."""
    matrix = as_float(matrix).astype(logits.dtype)
    if matrix.shape != (logits.shape[-1],) * 2:
        raise ValueError(f"{name} {list(matrix.shape)} must be [classes, classes] for logits {list(logits.shape)}.")
    return matrix


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
