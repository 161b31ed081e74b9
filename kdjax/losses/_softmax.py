"""Two softmaxes compared term by term, so that nothing cancels and no term is negative.

Notation: p and q are the softmaxes of the teacher's and the student's logits, d = log q - log p. A Kullback-Leibler
divergence is the sum of q_k - p_k - p_k d_k, which differs from the sum of -p_k d_k by sum(q - p) = 0 only. Each of
these terms is at least 0 and exactly 0 where d = 0. The signed terms -p_k d_k cancel each other instead: in float32
their sum was 5 % off where a temperature of 1,000 makes both sides nearly uniform, and negative beyond.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

# In place of an infinite log-probability where an infinite one times 0 would be NaN.
_FAR = 1e15

# Below this |d|, expm1(d) - d is computed by its Taylor series; above it, the plain difference loses one digit at most.
_NEAR = 0.5


class Comparison(NamedTuple):
    """Two softmaxes side by side.

    Attributes:
      p: Probabilities [..., classes] of the teacher.
      q: Probabilities [..., classes] of the student.
      d: log q - log p [..., classes]; -inf or inf where one side excludes a class by a logit of -inf, NaN where both
        do.
    """

    p: Array
    q: Array
    d: Array


def centred(logits: Array) -> tuple[Array, Array]:
    """Returns logits whose largest is 0 [..., classes], and whether they are a distribution [...].

    A row with NaN, with inf or with -inf alone is not a distribution. It becomes zeros, so that a caller who leaves its
    loss out gets no NaN from its gradient.
    """
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    good = jnp.isfinite(top)
    return jnp.where(good, logits - top, 0), good[..., 0]


def log_sum(logits: Array) -> Array:
    """Returns log(sum(exp(logits))) [...] of centred logits, with which nothing overflows."""
    return jnp.log(jnp.sum(jnp.exp(logits), axis=-1))


def compare(student: Array, teacher: Array) -> Comparison:
    """Compares the softmaxes of centred logits, both [..., classes]."""
    return _compared(student, teacher, _totals(student, teacher))


def finite(compared: Comparison) -> Comparison:
    """Returns the comparison with a far number for an infinite d, and 0 where both sides exclude a class."""
    d = compared.d
    return compared._replace(d=jnp.where(jnp.isnan(d), 0, jnp.clip(d, -_FAR, _FAR)))


def _swapped(compared: Comparison) -> Comparison:
    return Comparison(compared.q, compared.p, -compared.d)


def excess(p: Array, q: Array, d: Array) -> Array:
    """Returns q - p - p d with d = log(q / p): at least 0, exactly 0 at d = 0, q where p = 0."""
    near = jnp.abs(d) < _NEAR
    beyond = jnp.where((p > 0) & ~near, d, 0)
    return jnp.where(near, p * _excess_series(jnp.where(near, d, 0)), q - p - p * beyond)


def gap(p: Array, q: Array, d: Array) -> Array:
    """Returns q - p with d = log(q / p), to full relative precision where the two are nearly equal."""
    near = jnp.abs(d) < _NEAR
    small = jnp.where(near, d, 0)
    return jnp.where(near, p * (small + _excess_series(small)), q - p)


@jax.custom_jvp
def kl(student: Array, teacher: Array) -> Array:
    """Computes KL(p || q) [...] of centred logits, both [..., classes], in nats.

    The rule for its derivative says what the gradient is, (q - p) for the student's logits and -p (d + KL) for the
    teacher's. XLA then needs no array of the logits' size besides the gradient itself. The rule is differentiable in
    turn, in forward and in reverse mode.
    """
    return jnp.sum(excess(*compare(student, teacher)), axis=-1)


@functools.partial(kl.defjvp, symbolic_zeros=True)
def _kl_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    student, teacher = primals
    value = kl(student, teacher)
    slope = jnp.zeros_like(value)
    # The barrier keeps XLA from storing the exponentials of the value for the gradient: to compute them again is faster
    # than to write and read arrays of the logits' size.
    totals = lax.optimization_barrier(_totals(student, teacher))
    p, q, d = _compared(student, teacher, _Totals(*totals))
    if not isinstance(tangents[0], SymbolicZero):
        slope = slope + jnp.sum(gap(p, q, d) * tangents[0], axis=-1)
    if not isinstance(tangents[1], SymbolicZero):
        slope = slope - jnp.sum(p * (jnp.where(p > 0, d, 0) + value[..., None]) * tangents[1], axis=-1)
    return value, slope


@jax.custom_jvp
def mixture_kl(student: Array, teacher: Array, share: Array, weights: tuple[Array, Array]) -> Array:
    """Computes a KL(p || m) + b KL(q || m) [...] of centred logits, with the mixture m = share p + (1 - share) q.

    As for `kl`, a rule says what the derivative is, so that XLA needs no array of the logits' size besides the
    gradient, and the rule is differentiable in turn.

    Args:
      student: Centred logits of q, [..., classes].
      teacher: Centred logits of p, [..., classes].
      share: Share [] of p in the mixture, in [0, 1], in the type of the logits.
      weights: a and b, each [].
    """
    return jnp.sum(_mixture_terms(compare(student, teacher), share, weights), axis=-1)


@functools.partial(mixture_kl.defjvp, symbolic_zeros=True)
def _mixture_kl_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    student, teacher, share, weights = primals
    value = mixture_kl(student, teacher, share, weights)
    slope = jnp.zeros_like(value)
    # As in the rule of `kl`.
    compared = finite(_compared(student, teacher, _Totals(*lax.optimization_barrier(_totals(student, teacher)))))
    sides = (compared, share, weights), (_swapped(compared), 1 - share, weights[::-1])
    for side, tangent in zip(sides, tangents, strict=False):
        if not isinstance(tangent, SymbolicZero):
            along, probs = _mixture_slopes(*side)
            along = along - probs * jnp.sum(along, axis=-1, keepdims=True)
            slope = slope + jnp.sum(jnp.where(probs > 0, along, 0) * tangent, axis=-1)
    if not all(isinstance(tangent, SymbolicZero) for tangent in (tangents[2], *tangents[3])):
        slope = slope + _slope_of_weights(finite(compare(student, teacher)), primals[2:], tangents[2:])
    return value, slope


def _mixture_terms(compared: Comparison, share: Array, weights: tuple[Array, Array]) -> Array:
    p, q, d = finite(compared)
    mixture = share * p + (1 - share) * q
    to_teacher, to_student = _log_mixtures(d, share)
    terms = weights[0] * excess(p, mixture, to_teacher) + weights[1] * excess(q, mixture, to_student)
    # XLA computes a sum over classes of selected terms without storing them, and stores those that are plain sums.
    return jnp.where(mixture > 0, terms, 0)


def _mixture_slopes(compared: Comparison, share: Array, weights: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns the slopes by the logits of q up to a multiple of q, which makes them add up to 0; and q.

    With t = share (1 - share) (q - p) / m they are (1 - share) (q - p) (1 - share + t) for KL(p || m) and
    q (log(q / m) - t) for KL(q || m). Neither is a difference of nearly equal numbers where p and q are nearly equal.
    """
    p, q, d = compared
    apart, mixture = gap(p, q, d), share * p + (1 - share) * q
    some = mixture > 0
    t = share * (1 - share) * jnp.where(some, apart / jnp.where(some, mixture, 1), 0)
    of_other = (1 - share) * apart * (1 - share + t)
    slopes = weights[0] * of_other - weights[1] * q * (_log_mixtures(d, share)[1] + t)
    return jnp.where(some, slopes, 0), q


def _slope_of_weights(compared: Comparison, numbers: Any, tangents: Any) -> Array:
    """Returns the slope along tangents of the share and of the weights."""
    share, weights = numbers
    p, q, d = compared
    tangents = jax.tree.map(
        lambda x: jnp.zeros(x.shape, p.dtype) if isinstance(x, SymbolicZero) else x,
        tangents,
        is_leaf=lambda x: isinstance(x, SymbolicZero),
    )
    mixture = share * p + (1 - share) * q
    some = mixture > 0
    by_share = jnp.where(some, (weights[0] * p + weights[1] * q) * gap(p, q, d) / jnp.where(some, mixture, 1), 0)
    return jnp.sum(tangents[0] * by_share + _mixture_terms(compared, share, tangents[1]), axis=-1)


class _Totals(NamedTuple):
    """Sums over classes, each [..., 1], of the exponentials of either side and of their differences."""

    student: Array
    teacher: Array
    difference: Array


def _totals(student: Array, teacher: Array) -> _Totals:
    terms = (jnp.exp(student), jnp.exp(teacher), jnp.exp(student) - jnp.exp(teacher))
    return _Totals(*(jnp.sum(term, axis=-1, keepdims=True) for term in terms))


def _compared(student: Array, teacher: Array, totals: _Totals) -> Comparison:
    ratio = totals.difference / totals.teacher
    near = jnp.abs(ratio) < _NEAR
    # The difference of the logarithms of both sums. Where the sums are nearly equal, it has the digits of the sum of
    # the differences, which is exactly 0 where the sides are equal.
    apart = jnp.log(totals.student) - jnp.log(totals.teacher)
    shift = jnp.where(near, jnp.log1p(jnp.where(near, ratio, 0)), apart)
    p, q = jnp.exp(teacher - jnp.log(totals.teacher)), jnp.exp(student - jnp.log(totals.student))
    return Comparison(p, q, student - teacher - shift)


def _excess_series(d: Array) -> Array:
    """Returns expm1(d) - d for |d| < 0.5 by its Taylor series d^2 / 2 + d^3 / 6 + ..., to the precision of its type."""
    last = 9 if d.dtype == jnp.float32 else 15
    total = jnp.full_like(d, 1 / math.factorial(last))
    for power in reversed(range(2, last)):
        total = total * d + 1 / math.factorial(power)
    return d**2 * total


def log_mixture(d: Array, share: float) -> Array:
    """Returns log(share + (1 - share) exp(d)): the logarithm of a mixture of p and q, relative to log p.

    Args:
      d: log q - log p.
      share: Share of p in the mixture, in [0, 1].
    """
    teacher, student = jnp.asarray(share, d.dtype), jnp.asarray(1 - share, d.dtype)
    near = jnp.abs(d) < 1
    small = jnp.log1p(student * jnp.expm1(jnp.where(near, d, 0)))
    return jnp.where(near, small, jnp.logaddexp(jnp.log(teacher), jnp.log(student) + jnp.where(near, 1, d)))


def _log_mixtures(d: Array, share: Array) -> tuple[Array, Array]:
    """Returns log(m / p) and log(m / q) of the mixture m = share p + (1 - share) q; the larger side's is computed."""
    upper, lower = jnp.where(d > 0, 1 - share, share), jnp.where(d > 0, share, 1 - share)
    apart = -jnp.abs(d)
    near = apart > -1
    change = jnp.expm1(apart)
    small = jnp.log1p(lower * jnp.where(near, change, 0))
    far = jnp.log(jnp.where(near | (upper == 0), 1, upper + lower * (change + 1)))
    log_ratio = jnp.where(upper == 0, apart, jnp.where(near, small, far))
    return jnp.where(d > 0, log_ratio + d, log_ratio), jnp.where(d > 0, log_ratio, log_ratio - d)


def exp_difference(a: Array, b: Array, c: Array) -> Array:
    """Returns the second divided difference of exp at three points, in any order and also where points coincide.

    It is (exp[b, c] - exp[a, b]) / (c - a) with exp[x, y] = (exp(y) - exp(x)) / (y - x), and positive. For points less
    than 1 apart it is computed by its Taylor series around their mean.
    """
    low, high = jnp.minimum(jnp.minimum(a, b), c), jnp.maximum(jnp.maximum(a, b), c)
    middle = jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    near = high - low < 1
    apart = (_exp_slope(middle, high) - _exp_slope(low, middle)) / jnp.where(near, 1, high - low)
    return jnp.where(near, _exp_difference_series(*(jnp.where(near, x, 0) for x in (a, b, c))), apart)


def _exp_slope(low: Array, high: Array) -> Array:
    """Returns (exp(high) - exp(low)) / (high - low), exp(high) where the two are equal."""
    step = high - low
    close = step < 1e-2
    small = jnp.where(close, step, 0)
    # (1 - exp(-x)) / x = 1 - x / 2 + x^2 / 6 - ...
    series = jnp.ones_like(step)
    for power in reversed(range(2, 9)):
        series = 1 - small / power * series
    return jnp.exp(high) * jnp.where(close, series, -jnp.expm1(-step) / jnp.where(close, 1, step))


def _exp_difference_series(a: Array, b: Array, c: Array) -> Array:
    """Returns the second divided difference of exp at points less than 1 apart.

    It is exp(mean) times the sum of h_k / (k + 2)!, where h_k is the complete homogeneous symmetric polynomial of
    degree k in the three distances from the mean. As these add up to 0, h_k = product * h_(k-3) - pairs * h_(k-2).
    """
    mean = (a + b + c) / 3
    x, y, z = a - mean, b - mean, c - mean
    pairs, product = x * y + y * z + z * x, x * y * z
    terms = [jnp.ones_like(mean), jnp.zeros_like(mean), -pairs]
    for k in range(3, 15):
        terms.append(product * terms[k - 3] - pairs * terms[k - 2])
    return jnp.exp(mean) * sum(term * (1 / math.factorial(k + 2)) for k, term in enumerate(terms))
