"""Losses that compare a student's logits with a teacher's, and the power transform and entropy behind them.

Notation: q = softmax(student_logits), p = softmax(teacher_logits), a suffix T for softmax(logits / T), gamma = 1 / T.
Nothing here stops a gradient: a teacher is frozen by whoever runs it, as the training step does.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, as_logits, as_mask, check_range, expectation


def kd(student_logits: Array, teacher_logits: Array, *, temperature: float = 4.0, standardize: bool = False) -> Array:
    """Knowledge distillation, T^2 KL(p_T || q_T), both sides softened (Hinton et al., 2015).

    Args:
      student_logits: [batch, classes].
      teacher_logits: [batch, classes].
      temperature: T, above 0. The factor T^2 keeps the size of the gradient, T (q_T - p_T).
      standardize: whether both sides' logits are standardised first (see `standardize_logits`).

    Returns:
      [batch] in nats.

    Raises:
      ValueError: the shapes differ, or the temperature is out of range.
    """
    check_range("temperature", temperature)
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits), standardize)
    return temperature**2 * _kl(jax.nn.log_softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))


def ttm(student_logits: Array, teacher_logits: Array, *, gamma: float, standardize: bool = False) -> Array:
    """Transformed teacher matching, KL(p^gamma / U || q): the student is not softened (Zheng & Yang, 2024).

    With T = 1 / gamma it is KD and a Rényi entropy: ttm = kd / T - (T - 1) H_{1/T}(q) + (T - 1) H(p_T). Its gradient is
    q - p_T, so it needs no factor T^2.

    Args:
      student_logits: [batch, classes].
      teacher_logits: [batch, classes].
      gamma: above 0, the power of the transform; 1 / temperature.
      standardize: whether both sides' logits are standardised first.

    Returns:
      [batch] in nats.

    Raises:
      ValueError: the shapes differ, or gamma is out of range.
    """
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits), standardize)
    return _kl(power_transform(teacher, gamma), jax.nn.log_softmax(student))


def wttm(
    student_logits: Array,
    teacher_logits: Array,
    *,
    gamma: float,
    normalize: str = "none",
    standardize: bool = False,
    mask: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Weighted transformed teacher matching, U KL(p^gamma / U || q), U = sum_k p_k^gamma (Zheng & Yang, 2024).

    U is large where the teacher is soft: from 1 for a one-hot teacher to classes^(1 - gamma) for a uniform one (for
    gamma below 1). It depends on the teacher alone, so the student's gradient is U q - p^gamma.

    Args:
      student_logits: [batch, classes].
      teacher_logits: [batch, classes].
      gamma: above 0, the power of the transform; 1 / temperature.
      normalize: 'none' is the paper's; 'batch_mean' divides U by its mean over the batch, which leaves the weighting of
        the examples and takes away the scale of the loss.
      standardize: whether both sides' logits are standardised first.
      mask: [batch], the examples whose U counts in that mean; None for all. Values are returned for all of them.
      axis_name: of the devices that share the batch, where the mean is over all of them. Its `psum` is a sum over
        devices of what each holds: do not differentiate the teacher through it.

    Returns:
      [batch] in nats.

    Raises:
      ValueError: the shapes do not fit, or gamma or normalize is out of range.
    """
    check_range("normalize", normalize)
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits), standardize)
    mask = as_mask(mask, student)
    divergence = ttm(student, teacher, gamma=gamma)
    weight = jnp.exp(jax.nn.logsumexp(gamma * jax.nn.log_softmax(teacher), axis=-1))
    if normalize == "batch_mean":
        weight = weight / _batch_mean(weight, mask, axis_name)
    return weight * divergence


def student_renyi(student_logits: Array, *, order: float) -> Array:
    """Rényi entropy of the student's output, H_order(q): `renyi_entropy` as a term of a composite loss.

    Its weight may have either sign. What TTM adds to KD is this term at order 1 / T, weighted by -(T - 1) where KD is
    weighted by 1 / T; a weight between 0 and that makes all that lies between the two (Zheng & Yang, 2024).

    Args:
      student_logits: [batch, classes].
      order: above 0; 1 is Shannon's entropy.

    Returns:
      [batch] in nats.

    Raises:
      ValueError: student_logits are not [batch, classes], or the order is out of range.
    """
    return renyi_entropy(as_logits(student_logits, "student_logits"), order)


def standardize_logits(logits: Array) -> Array:
    """Z-scores of each row, (z - mean) / (deviation + 1e-7), deviation unbiased (Sun et al., CVPR 2024, eq. 16).

    What is left has neither the scale nor the shift of the logits, so the temperature acts alike on all examples.

    Args:
      logits: [batch, classes], two classes at least.

    Returns:
      [batch, classes]; zeros for a constant row, where the derivative is the formula's too, 1e7 times the centring.

    Raises:
      ValueError: logits are not [batch, classes].
    """
    logits = as_logits(logits)
    logits = logits - lax.stop_gradient(logits[:, :1])  # so that equal ones are zeros, not what rounding leaves of them
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
    return centred / (deviation + 1e-7)


def standardized(student: Array, teacher: Array, standardize: bool) -> tuple[Array, Array]:
    """Returns both sides' logits, standardised if asked."""
    return (standardize_logits(student), standardize_logits(teacher)) if standardize else (student, teacher)


def power_transform(logits: Array, gamma: float) -> Array:
    """Log-probabilities of the transformed distribution, log(p_k^gamma / sum_j p_j^gamma) (Zheng & Yang, 2024).

    Args:
      logits: [batch, classes].
      gamma: above 0; below 1 flattens p, and gamma = 1 / T is softening by the temperature T.

    Returns:
      [batch, classes], at most 0.

    Raises:
      ValueError: logits are not [batch, classes], or gamma is out of range.
    """
    check_range("gamma", gamma)
    logits = as_logits(logits)
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))  # times gamma it would cost all others precision
    return jax.nn.log_softmax(gamma * (logits - top))


def renyi_entropy(logits: Array, order: float) -> Array:
    """Rényi entropy of the softmax, log(sum_k q_k^order) / (1 - order); Shannon's at order 1 (Rényi, 1961).

    Near order 1 numerator and denominator vanish together. There the sum is taken of q (q^a - 1) / a with
    a = order - 1, in a form that passes through a = 0 with its value and its derivatives.

    Args:
      logits: [batch, classes].
      order: above 0, a number or a traced scalar.

    Returns:
      [batch] in nats, from 0 for a one-hot output to log(classes) for a uniform one.

    Raises:
      ValueError: logits are not [batch, classes], or the order is out of range.
    """
    check_range("order", order)
    log_q = jnp.maximum(jax.nn.log_softmax(as_logits(logits)), -1e15)  # a masked class, -inf, would meet 0 * inf
    excess = order - 1
    divisor = jnp.where(jnp.abs(excess) < 1e-6, 1, excess)  # for branches that are not taken so near to 1
    log_sum = jax.nn.logsumexp(order * log_q, axis=-1)
    moment = _moment(log_q, order, excess, divisor)
    near = jnp.abs(log_sum) < 0.5
    growth = jnp.where(near, excess * moment, 0)  # sum_k q_k^order - 1
    return -jnp.where(near, moment * _over_x(jnp.log1p, growth, _LOG1P), log_sum / divisor)


def _moment(log_q: Array, order, excess, divisor) -> Array:
    """Returns sum_k q_k (q_k^a - 1) / a with a = `excess`; where q^a is large, as a difference that cannot overflow."""
    q, exponent = jnp.exp(log_q), excess * log_q
    near = jnp.abs(exponent) < 1
    inner = q * log_q * _over_x(jnp.expm1, jnp.where(near, exponent, 0), _EXPM1)
    outer = (jnp.exp(order * log_q) - q) / divisor
    return jnp.sum(jnp.where(near, inner, outer), axis=-1)


# Taylor coefficients of expm1(x) / x and log1p(x) / x, highest power first.
_EXPM1 = [1 / math.factorial(k + 1) for k in reversed(range(8))]
_LOG1P = [(-1) ** k / (k + 1) for k in reversed(range(8))]


def _over_x(function: Callable[[Array], Array], x: Array, coefficients: list[float]) -> Array:
    """Returns function(x) / x, by its Taylor series around 0."""
    small = jnp.abs(x) < 1e-2
    series = jnp.polyval(jnp.asarray(coefficients, x.dtype), jnp.where(small, x, 0))
    away = jnp.where(small, 1, x)
    return jnp.where(small, series, function(away) / away)


def _kl(log_p: Array, log_q: Array) -> Array:
    return expectation(jnp.exp(log_p), log_p - log_q)


def _batch_mean(values: Array, mask: Array, axis_name: str | None) -> Array:
    """Mean of the unmasked values over the global batch, 1 if there are none."""
    total, count = jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
