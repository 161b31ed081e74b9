"""Losses that compare a student's logits with a teacher's, and the power transform and entropy that they build on.

Notation: q = softmax(student_logits) and p = softmax(teacher_logits); a suffix T means softmax(logits / T), and
gamma = 1 / T. No loss stops a gradient: the caller freezes the teacher, as the training step does.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, as_logits, as_where, check_range
from kdjax.losses._pairs import Pair, as_pair, values_of
from kdjax.losses._softmax import kl, log_sum
from kdjax.types import TopK


def kd(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    temperature: float = 4.0,
    standardize: bool = False,
    mode: str = "tail",
) -> Array:
    """Computes the knowledge-distillation loss T^2 KL(p_T || q_T), with both sides softened by the temperature T.

    The gradient with respect to the student's logits is T (q_T - p_T). The difference of the probabilities shrinks
    like 1 / T, so the factor T^2 keeps the gradient's size as T grows. In float32 the value keeps its digits up to
    T = 1e5 for logits of size 1.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      temperature: Temperature T of both softmaxes, above 0.
      standardize: Whether to z-score the logits of both sides first; see `standardize_logits`.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'; see `divergence`.

    Returns:
      Loss of each example [...] in nats, at least 0; 0 where q = p.

    Raises:
      ValueError: The shapes differ, a hyper-parameter is out of range, or a top-k teacher shall be z-scored.

    References:
      Hinton, Vinyals & Dean, 2015, "Distilling the Knowledge in a Neural Network",
      https://arxiv.org/abs/1503.02531
    """
    if standardize:
        student_logits, teacher_logits = standardized(*as_logit_pair(student_logits, teacher_logits, "kd"), True)
    pair = as_pair("kd", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return temperature**2 * values_of(pair, kl(pair.student, pair.teacher))


def ttm(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    gamma: float,
    standardize: bool = False,
    mode: str = "renormalize",
) -> Array:
    """Computes the transformed-teacher-matching loss KL(p^gamma / U || q), U = sum_k p_k^gamma.

    Only the teacher is transformed; the student keeps temperature 1. With T = 1 / gamma the loss is KD plus a Rényi
    entropy and a constant: ttm = kd / T - (T - 1) H_{1/T}(q) + (T - 1) H(p_T). Its gradient with respect to the
    student's logits is q - p_T, whose size does not depend on T, so there is no factor T^2.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      gamma: Power of the transform, above 0; 1 / T of a temperature T.
      standardize: Whether to z-score the logits of both sides first; see `standardize_logits`.
      mode: How a top-k teacher's other classes are counted: 'renormalize' or 'zero'; see `divergence`.

    Returns:
      Loss of each example [...] in nats, at least 0; 0 where q = p^gamma / U.

    Raises:
      ValueError: The shapes differ, a hyper-parameter is out of range, or a top-k teacher shall be z-scored.

    References:
      Zheng & Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching",
      https://arxiv.org/abs/2402.11148
    """
    check_range("gamma", gamma)
    if standardize:
        student_logits, teacher_logits = standardized(*as_logit_pair(student_logits, teacher_logits, "ttm"), True)
    divergence, _, good = _matched(as_pair("ttm", student_logits, teacher_logits, temperature=1.0, mode=mode), gamma)
    return jnp.where(good, divergence, jnp.nan)


def wttm(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    gamma: float,
    normalize: str = "none",
    standardize: bool = False,
    mode: str = "renormalize",
    where: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the weighted transformed-teacher-matching loss U KL(p^gamma / U || q), U = sum_k p_k^gamma.

    The weight U is larger for a softer teacher: for gamma below 1 it ranges from 1 for a one-hot teacher to
    classes^(1 - gamma) for a uniform one. U depends on the teacher alone, so the gradient with respect to the student's
    logits is U q - p^gamma.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      gamma: Power of the transform, above 0; 1 / T of a temperature T.
      normalize: 'none' is the paper's loss. 'batch_mean' divides U by its mean over all examples, which keeps the
        weighting of the examples and removes the scale that U gives the loss.
      standardize: Whether to z-score the logits of both sides first; see `standardize_logits`.
      mode: How a top-k teacher's other classes are counted: 'renormalize' or 'zero'; see `divergence`. U is that of the
        teacher renormalised over its top classes.
      where: Boolean array [...] of the examples that count in the mean of U; None counts all. The mean runs over all
        leading axes. The loss is returned for every example, whether it counts or not.
      axis_name: Name of the mapped axis of the devices that share the batch; the mean of U is then over all devices.
        Do not differentiate with respect to the teacher through it: the gradient of `psum` adds up over devices.

    Returns:
      Loss of each example [...] in nats, at least 0; 0 where q = p^gamma / U.

    Raises:
      ValueError: The shapes do not match, a hyper-parameter is out of range, or a top-k teacher shall be z-scored.

    References:
      Zheng & Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching",
      https://arxiv.org/abs/2402.11148
    """
    check_range("gamma", gamma)
    check_range("normalize", normalize)
    if standardize:
        student_logits, teacher_logits = standardized(*as_logit_pair(student_logits, teacher_logits, "wttm"), True)
    pair = as_pair("wttm", student_logits, teacher_logits, temperature=1.0, mode=mode)
    counted = as_where(where, pair.student)
    divergence, weight, good = _matched(pair, gamma)
    if normalize == "batch_mean":
        weight = weight / _batch_mean(weight, counted, axis_name)
    return jnp.where(good, weight * divergence, jnp.nan)


def student_renyi(student_logits: Array, *, order: float) -> Array:
    """Computes the Rényi entropy H_order(q) of the student's output, a term to add to other losses.

    The weight of this term may be positive or negative. TTM with T = 1 / gamma is KD with weight 1 / T plus this
    entropy of order 1 / T with weight -(T - 1); weights between that and 0 interpolate between TTM and KD.

    Args:
      student_logits: Student logits [..., classes].
      order: Order of the entropy, above 0; 1 is Shannon's entropy.

    Returns:
      Entropy of each example [...] in nats, in [0, log(classes)].

    Raises:
      ValueError: The logits are not [..., classes], or the order is out of range.

    References:
      Zheng & Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching",
      https://arxiv.org/abs/2402.11148
    """
    return renyi_entropy(as_logits(student_logits, "student_logits"), order)


def standardize_logits(logits: Array) -> Array:
    """Returns the z-scores of each example's logits, (z - mean) / (deviation + 1e-7).

    The deviation is the unbiased one. The result has neither the scale nor the shift of the logits, so a temperature
    has the same effect on every example.

    Args:
      logits: Logits [..., classes], at least two classes.

    Returns:
      Standardised logits [..., classes]. A row of equal logits becomes zeros; its derivative is that of the formula,
      1e7 times the centring.

    Raises:
      ValueError: The logits are not [..., classes].

    References:
      Sun, Ren, Li, Wang & Cao, 2024, "Logit Standardization in Knowledge Distillation", eq. 16,
      https://arxiv.org/abs/2403.01427
    """
    logits = as_logits(logits)
    # Subtracting one logit first makes a row of equal logits exactly 0. Its mean alone may be off by a rounding error,
    # which the division by 1e-7 would blow up.
    logits = logits - lax.stop_gradient(logits[..., :1])
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
    # Two wheres: the gradient of sqrt is infinite at 0, and 0 * inf from the branch not taken would be NaN.
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
    return centred / (deviation + 1e-7)


def standardized(student: Array, teacher: Array, standardize: bool) -> tuple[Array, Array]:
    """Returns the logits of both sides, z-scored if `standardize` is set."""
    return (standardize_logits(student), standardize_logits(teacher)) if standardize else (student, teacher)


def power_transform(logits: Array, gamma: float) -> Array:
    """Returns the log-probabilities of the transformed distribution, log(p_k^gamma / sum_j p_j^gamma).

    This is a softmax at temperature T = 1 / gamma, written as a transform of the probabilities.

    Args:
      logits: Logits [..., classes] of p = softmax(logits).
      gamma: Power, above 0; below 1 it flattens p.

    Returns:
      Log-probabilities [..., classes], at most 0.

    Raises:
      ValueError: The logits are not [..., classes], or gamma is out of range.

    References:
      Zheng & Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching",
      https://arxiv.org/abs/2402.11148
    """
    check_range("gamma", gamma)
    logits = as_logits(logits)
    # The maximum is subtracted before the product with gamma: a large shift that all logits share would cost precision.
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jax.nn.log_softmax(gamma * (logits - top))


def renyi_entropy(logits: Array, order: float) -> Array:
    """Computes the Rényi entropy log(sum_k q_k^order) / (1 - order) of the softmax q; Shannon's entropy at order 1.

    Near order 1 the numerator and the denominator vanish together, and their quotient loses all precision. There, with
    a = order - 1, the entropy is computed from the moment M = sum_k q_k (q_k^a - 1) / a as -log1p(a M) / a. Both
    quotients have a limit at a = 0, and `_over_x` evaluates them with the right value and derivatives.

    Args:
      logits: Logits [..., classes].
      order: Order of the entropy, above 0: a number or a traced scalar.

    Returns:
      Entropy of each example [...] in nats, from 0 for a one-hot output to log(classes) for a uniform one.

    Raises:
      ValueError: The logits are not [..., classes], or the order is out of range.

    References:
      Rényi, 1961, "On Measures of Entropy and Information".
    """
    check_range("order", order)
    # A class that the caller masks out has the logarithm -inf, and 0 * inf would be NaN; -1e15 is as good as -inf.
    log_q = jnp.maximum(jax.nn.log_softmax(as_logits(logits)), -1e15)
    excess = order - 1
    # So near to order 1 the quotients by `divisor` are not used; 1 keeps their values and gradients finite.
    divisor = jnp.where(jnp.abs(excess) < 1e-6, 1, excess)
    log_sum = jax.nn.logsumexp(order * log_q, axis=-1)
    moment = _moment(log_q, order, excess, divisor)
    near = jnp.abs(log_sum) < 0.5
    growth = jnp.where(near, excess * moment, 0)  # sum_k q_k^order - 1
    return -jnp.where(near, moment * _over_x(jnp.log1p, growth, _LOG1P), log_sum / divisor)


def _moment(log_q: Array, order: float, excess: float, divisor: Array) -> Array:
    """Returns sum_k q_k (q_k^a - 1) / a, where a is `excess`, order - 1.

    For small |a log q_k| this is expm1(a log q_k) / a, which is exact near a = 0. Elsewhere it is the difference
    q_k^order - q_k over a, which cannot overflow although q_k^a may.
    """
    q, exponent = jnp.exp(log_q), excess * log_q
    near = jnp.abs(exponent) < 1
    inner = q * log_q * _over_x(jnp.expm1, jnp.where(near, exponent, 0), _EXPM1)
    outer = (jnp.exp(order * log_q) - q) / divisor
    return jnp.sum(jnp.where(near, inner, outer), axis=-1)


# Taylor coefficients of expm1(x) / x and log1p(x) / x, highest power first.
_EXPM1 = [1 / math.factorial(k + 1) for k in reversed(range(8))]
_LOG1P = [(-1) ** k / (k + 1) for k in reversed(range(8))]


def _over_x(function: Callable[[Array], Array], x: Array, coefficients: list[float]) -> Array:
    """Returns function(x) / x, near 0 by its Taylor series, since 0 / 0 has neither a value nor a gradient."""
    small = jnp.abs(x) < 1e-2
    series = jnp.polyval(jnp.asarray(coefficients, x.dtype), jnp.where(small, x, 0))
    away = jnp.where(small, 1, x)
    return jnp.where(small, series, function(away) / away)


def _matched(pair: Pair, gamma: float) -> tuple[Array, Array, Array]:
    """Returns KL(p^gamma / U || q), U = sum_k p_k^gamma and whether both sides are distributions, each [...]."""
    # U in log space: p_k^gamma of a tiny p_k would underflow.
    weight = jnp.exp(log_sum(gamma * pair.teacher) - gamma * log_sum(pair.teacher))
    return kl(pair.student, gamma * pair.teacher), weight, pair.good


def _batch_mean(values: Array, counted: Array, axis_name: str | None) -> Array:
    """Returns the mean [] of the values that count over the global batch, or 1 if none counts."""
    total, count = jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
