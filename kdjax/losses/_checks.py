"""What every loss does at its door: shapes, ranges of hyper-parameters, precision."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer)


# Hyper-parameter -> (what must hold, in words). A name that is not here may take any value.
RANGES = {
    "temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "gamma": (lambda value: 0 < value < math.inf, "above 0"),
    "order": (lambda value: 0 < value < math.inf, "above 0"),
    "eta": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "num_top": (lambda value: _is_integer(value) and value >= 2, "an integer, at least 2"),
    "exponent": (lambda value: 0 < value < math.inf, "above 0"),
    "p1": (lambda value: 0 < value < math.inf, "above 0"),
    "p2": (lambda value: 0 < value < math.inf, "above 0"),
    "margin": (lambda value: 0 < value < math.inf, "above 0"),
    "k": (lambda value: _is_integer(value) and value >= 1, "an integer, at least 1"),
    "space": (lambda value: value in ("probs", "logits"), "'probs' or 'logits'"),
    "reduction": (lambda value: value in ("class_sum", "class_mean"), "'class_sum' or 'class_mean'"),
    "normalize": (lambda value: value in ("none", "batch_mean"), "'none' or 'batch_mean'"),
}


def check_range(name: str, value: Any) -> None:
    """Refuses a hyper-parameter outside its range; a traced value passes unseen, and so does a name without a range.

    Args:
      name: of the hyper-parameter, a key of RANGES or not.
      value: what was given.

    Raises:
      ValueError: names the hyper-parameter, its range and the value.
    """
    if name not in RANGES or isinstance(value, jax.core.Tracer):
        return
    holds, words = RANGES[name]
    try:
        allowed = bool(holds(value)) and not isinstance(value, bool)
    except (TypeError, ValueError):  # a string where a number belongs, an array where a scalar belongs
        allowed = False
    if not allowed:
        raise ValueError(f"{name} must be {words}, not {value!r}.")


def as_float(array: Any) -> Array:
    """Returns the array in its own floating type, float32 at least."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_logits(logits: Any, name: str = "logits") -> Array:
    """Returns `[batch, classes]` logits in float32 at least.

    Raises:
      ValueError: another number of axes, or no class; prints the shape.
    """
    logits = as_float(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must be [batch, classes], not {_show(logits)}.")
    return logits


def as_logit_pair(student_logits: Any, teacher_logits: Any) -> tuple[Array, Array]:
    """Returns student's and teacher's logits, both `[batch, classes]` and of one shape.

    Raises:
      ValueError: they are not; prints both shapes.
    """
    student, teacher = as_logits(student_logits, "student_logits"), as_logits(teacher_logits, "teacher_logits")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits {_show(student)} and teacher_logits {_show(teacher)} must have one shape [batch, classes]."
        )
    return student, teacher


def as_targets(labels: Any, logits: Array) -> tuple[Array, Array]:
    """Returns target probabilities `[batch, classes]` and which rows have a label that exists, `[batch]`.

    Args:
      labels: integers [batch] or probabilities [batch, classes].
      logits: [batch, classes].

    Raises:
      ValueError: neither of the two; prints both shapes.
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


def as_mask(mask: Any, logits: Array) -> Array:
    """Returns a `[batch]` mask, all true for None.

    Raises:
      ValueError: another shape; prints both.
    """
    if mask is None:
        return jnp.ones(logits.shape[0], bool)
    mask = jnp.asarray(mask)
    if mask.shape != logits.shape[:1]:
        raise ValueError(f"mask must be [batch], not {_show(mask)} beside logits {_show(logits)}.")
    return mask.astype(bool)


def expectation(probs: Array, values: Array) -> Array:
    """Returns the sum over classes of `probs * values` with 0 * inf = 0, as in 0 log 0, in the gradient too."""
    nothing = (probs == 0) & ~jnp.isfinite(values)
    return jnp.sum(probs * jnp.where(nothing, 0, values), axis=-1)


def _show(array: Array) -> str:
    return str(list(array.shape))
