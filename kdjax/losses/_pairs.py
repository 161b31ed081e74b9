"""What the divergences compare: a student's logits with a teacher's, of all classes or of its top classes alone."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from kdjax.losses._checks import as_float, as_logit_pair, as_logits, as_where, check_range
from kdjax.losses._softmax import centred
from kdjax.types import TopK

# Divergence -> the modes in which it takes a top-k teacher. 'zero' is left out where it would be infinite.
MODES = {
    "kd": ("tail", "renormalize", "zero"),
    "ttm": ("renormalize", "zero"),  # the transformed mass of the other classes is not known
    "wttm": ("renormalize", "zero"),
    "forward_kl": ("tail", "renormalize", "zero"),
    "reverse_kl": ("tail", "renormalize"),
    "jeffreys": ("tail", "renormalize"),
    "skew_kl": ("tail", "renormalize", "zero"),
    "skew_reverse_kl": ("tail", "renormalize", "zero"),
    "jensen_shannon": ("tail", "renormalize", "zero"),
    "total_variation": ("tail", "renormalize", "zero"),
    "alpha_beta": ("tail", "renormalize"),
}


class Pair(NamedTuple):
    """The two sides of a divergence.

    Attributes:
      student: Centred logits [..., classes] of the student at its temperature; or [..., k] or [..., k + 1] beside a
        top-k teacher.
      teacher: The teacher's, of the same shape.
      good: Whether both sides are distributions [...].
    """

    student: Array
    teacher: Array
    good: Array


def as_pair(
    loss: str, student_logits: ArrayLike, teacher_logits: ArrayLike | TopK, *, temperature: float, mode: str
) -> Pair:
    """Returns what a divergence compares.

    Args:
      loss: Name of the divergence, a key of MODES.
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or its top classes.
      temperature: Temperature of both softmaxes, above 0.
      mode: How the classes outside a top-k teacher are counted; see `kdjax.losses.divergence`.

    Raises:
      ValueError: The shapes differ, a value is out of range, or the divergence takes no top-k teacher in this mode.
    """
    check_range("temperature", temperature)
    check_range("mode", mode)
    if isinstance(teacher_logits, TopK):
        return _top_pair(loss, as_logits(student_logits, "student_logits"), teacher_logits, temperature, mode)
    return _centred_pair(*as_logit_pair(student_logits, teacher_logits, loss), temperature)


def values_of(pair: Pair, values: Array, where: ArrayLike | None = None) -> Array:
    """Returns the values [...] of a divergence, NaN where one side is no distribution, or 0 if it does not count there.

    Raises:
      ValueError: `where` has another shape.
    """
    if where is None:
        return jnp.where(pair.good, values, jnp.nan)
    return jnp.where(pair.good, values, jnp.where(as_where(where, pair.student), jnp.nan, 0))


def _centred_pair(student: Array, teacher: Array, temperature: float) -> Pair:
    # The maximum is subtracted before the division: a large shift that all logits share would cost precision.
    (student, student_good), (teacher, teacher_good) = centred(student), centred(teacher)
    return Pair(student / temperature, teacher / temperature, student_good & teacher_good)


def _top_pair(loss: str, student: Array, teacher: TopK, temperature: float, mode: str) -> Pair:
    """Returns the two sides over the teacher's top classes, and one class for all others except in 'renormalize'."""
    if mode not in MODES[loss]:
        raise ValueError(f"'{loss}' takes a top-k teacher in the modes {', '.join(MODES[loss])}, not {mode!r}.")
    indices, log_probs = _checked(student, teacher)
    kept = jnp.take_along_axis(student, indices, axis=-1)
    if mode == "renormalize" or indices.shape[-1] == student.shape[-1]:
        return _centred_pair(kept, log_probs, temperature)
    if mode == "tail" and not isinstance(temperature, Tracer) and temperature != 1:
        raise ValueError(
            f"mode 'tail' needs temperature 1, not {temperature!r}: a top-k teacher tells the mass of all other "
            "classes at temperature 1 alone. Take another mode."
        )
    student, good = centred(student)
    student = student / temperature
    kept = jnp.take_along_axis(student, indices, axis=-1)
    others = jnp.put_along_axis(student, indices, jnp.full_like(kept, -jnp.inf), axis=-1, inplace=False)
    rest = _log_total(others)
    missing = _log_missing(log_probs) if mode == "tail" else jnp.full_like(rest, -jnp.inf)
    sides = [
        jnp.concatenate([top, bucket[..., None]], axis=-1)
        for top, bucket in ((kept, rest), (log_probs / temperature, missing))
    ]
    pair = _centred_pair(sides[0], sides[1], 1.0)
    right = jnp.asarray(temperature == 1) | (mode != "tail")  # a traced temperature cannot be refused
    return pair._replace(good=pair.good & good & right)


def _checked(student: Array, teacher: TopK) -> tuple[Array, Array]:
    """Returns the indices and log-probabilities of a top-k teacher.

    Raises:
      ValueError: Their shapes or types do not fit the student's logits.
    """
    indices, log_probs = jnp.asarray(teacher.indices), as_float(teacher.log_probs)
    fits = indices.ndim == student.ndim and indices.shape[:-1] == student.shape[:-1]
    if indices.shape != log_probs.shape or not fits or not 0 < indices.shape[-1] <= student.shape[-1]:
        raise ValueError(
            f"a top-k teacher of indices {list(indices.shape)} and log_probs {list(log_probs.shape)} does not fit "
            f"student_logits {list(student.shape)}; both must be [..., k]."
        )
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"the indices of a top-k teacher must be integers, not {indices.dtype}.")
    return indices, log_probs


def _log_total(logits: Array) -> Array:
    """Returns log(sum(exp(logits))) [...] of logits of at most 0, -inf with a gradient of 0 where all are -inf."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    some = jnp.isfinite(top)
    total = jnp.sum(jnp.exp(jnp.where(some, logits - top, 0)), axis=-1)
    return jnp.where(some[..., 0], jnp.log(total) + top[..., 0], -jnp.inf)


def _log_missing(log_probs: Array) -> Array:
    """Returns log(1 - sum(exp(log_probs))) [...], -inf where rounding leaves nothing."""
    missing = -jnp.expm1(jnp.minimum(_log_total(log_probs), 0))
    some = missing > 0
    return jnp.where(some, jnp.log(jnp.where(some, missing, 1)), -jnp.inf)
