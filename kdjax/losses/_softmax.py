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
