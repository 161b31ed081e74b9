"""Divergences between a student's and a teacher's distribution over classes or tokens.

Notation: q = softmax(student_logits / T) and p = softmax(teacher_logits / T). Each is 0 where q = p and never below 0,
also in bfloat16, whose logits are computed with in float32. None has a factor T^2, and none stops a gradient.

A teacher may be known by its top classes alone, as a `kdjax.types.TopK`. `mode` then says how the others are counted:

* 'tail' (default): all other classes are one class of the mass that the teacher's top classes leave over. The value is
  at most that of all classes and tends to it as k grows. It needs temperature 1.
* 'renormalize': both sides are renormalised over the teacher's top classes. The student's mass elsewhere is not seen.
* 'zero': the teacher is renormalised over its top classes and 0 elsewhere; the student has all classes. This drives all
  of the student's mass to the top classes. Only divergences that stay finite take it.

With k = classes each mode gives the value and the gradient of all classes.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from kdjax.losses._checks import as_logits, check_combination, check_range
from kdjax.losses._pairs import Pair, as_pair, values_of
from kdjax.losses._softmax import Comparison, compare, excess, exp_difference, finite, gap, kl, log_mixture, mixture_kl
from kdjax.losses.sampled import sampled_values
from kdjax.types import Sampled, TopK

# In place of an infinite log-probability where an infinite one times 0 would be NaN.
_FAR = 1e15


def forward_kl(
    student_logits: Array,
    teacher_logits: Array | TopK | Sampled,
    *,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the forward Kullback-Leibler divergence KL(p || q) = sum_k p_k log(p_k / q_k).

    It is `kd` without the factor T^2. Its gradient with respect to the student's logits is (q - p) / T.

    With a Sampled teacher it is sum_k t_k log(p_k / q_k) over the classes that were drawn. Value and gradient are those
    of all classes on average over the draws; one value may be below 0. It needs temperature 1.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], a TopK of [..., k] or a Sampled of [..., n].
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, at least 0 unless the teacher is sampled.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Kullback & Leibler, 1951, "On Information and Sufficiency".
    """
    if isinstance(teacher_logits, Sampled):
        return _sampled_kl(student_logits, teacher_logits, temperature, where)
    pair = as_pair("forward_kl", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, kl(pair.student, pair.teacher), where)


def reverse_kl(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the reverse Kullback-Leibler divergence KL(q || p) = sum_k q_k log(q_k / p_k).

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail' or 'renormalize'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, at least 0; infinite where the teacher excludes a class by -inf that the
      student allows.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Gu, Dong, Wei & Huang, 2024, "MiniLLM: Knowledge Distillation of Large Language Models",
      https://arxiv.org/abs/2306.08543
    """
    pair = as_pair("reverse_kl", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, kl(pair.teacher, pair.student), where)


def jeffreys(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the Jeffreys divergence KL(p || q) + KL(q || p): the sum, not the mean, of both directions.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail' or 'renormalize'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, at least 0, symmetric in student and teacher.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Jeffreys, 1946, "An Invariant Form for the Prior Probability in Estimation Problems".
    """
    pair = as_pair("jeffreys", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, kl(pair.student, pair.teacher) + kl(pair.teacher, pair.student), where)


def skew_kl(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the skew Kullback-Leibler divergence KL(p || skew p + (1 - skew) q).

    DistiLLM's code leaves the teacher's entropy out of it, which changes the value and not the student's gradient.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      skew: Share of the teacher in the mixture, in [0, 1]; 0 is the forward divergence.
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, from 0 to -log(skew).

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Ko, Kim, Chen & Yun, 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", eq. 3,
      https://arxiv.org/abs/2402.03898
    """
    check_range("skew", skew)
    pair = as_pair("skew_kl", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, _skewed(finite(compare(pair.student, pair.teacher)), skew), where)


def skew_reverse_kl(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the reverse skew Kullback-Leibler divergence KL(q || skew q + (1 - skew) p).

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      skew: Share of the student in the mixture, in [0, 1]; 0 is the reverse divergence.
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, from 0 to -log(skew).

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Ko, Kim, Chen & Yun, 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", eq. 4,
      https://arxiv.org/abs/2402.03898
    """
    check_range("skew", skew)
    pair = as_pair("skew_reverse_kl", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, _skewed(finite(compare(pair.teacher, pair.student)), skew), where)


def jensen_shannon(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    beta: float = 0.5,
    scaled: bool = False,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the generalised Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m).

    m = beta p + (1 - beta) q is the mixture of both. This is the definition of Agarwal et al. It tends to 0 at both
    ends of beta. `scaled` divides it by beta (1 - beta), which is another function: it tends to KL(p || q) at beta 0
    and to KL(q || p) at beta 1.

    Libraries mix the two up, each in its own way. Their numbers at temperature T, before their means over tokens:

    * TRL and Liger: this function for 0 < beta < 1, `forward_kl` at beta 0 and `reverse_kl` at beta 1. They jump there.
    * EasyDeL has the shares of p and q in its mixture the other way round. Its number is
      beta skew_kl(skew=1 - beta) + (1 - beta) skew_reverse_kl(skew=beta); this function at beta 1/2 alone,
      `reverse_kl` at 0 and `forward_kl` at 1.
    * DistiLLM's js_distance(lam) is this function with beta = 1 - lam.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      beta: Weight of the teacher, in [0, 1].
      scaled: Whether to divide by beta (1 - beta), with the limits at 0 and 1.
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...] in nats, at least 0; if not scaled, at most the entropy of (beta, 1 - beta),
      which is log 2 at beta 1/2. There it is symmetric in student and teacher.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Agarwal et al., 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", eq. 1,
      https://arxiv.org/abs/2306.13649
    """
    check_range("beta", beta, "jensen_shannon")
    pair = as_pair("jensen_shannon", student_logits, teacher_logits, temperature=temperature, mode=mode)
    share = jnp.asarray(beta, pair.student.dtype)
    weights = (_reciprocal(1 - share), _reciprocal(share)) if scaled else (share, 1 - share)
    return values_of(pair, mixture_kl(pair.student, pair.teacher, share, weights), where)


def total_variation(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the total variation distance sum_k |p_k - q_k| / 2.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      temperature: Temperature T of both softmaxes, above 0.
      mode: How a top-k teacher's other classes are counted: 'tail', 'renormalize' or 'zero'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Distance of each example [...], from 0 to 1, symmetric in student and teacher. A class with p_k = q_k adds nothing
      to the gradient, as the absolute value has none there.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Wen, Li, Du & Mou, 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
      https://arxiv.org/abs/2307.15190
    """
    pair = as_pair("total_variation", student_logits, teacher_logits, temperature=temperature, mode=mode)
    return values_of(pair, jnp.sum(jnp.abs(gap(*compare(pair.student, pair.teacher))), axis=-1) / 2, where)


def alpha_beta(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    alpha: float = 0.8,
    beta: float = 0.3,
    temperature: float = 1.0,
    mode: str = "tail",
    where: Array | None = None,
) -> Array:
    """Computes the alpha-beta divergence of ABKD, (alpha p^s / s + beta q^s / s - p^alpha q^beta) / (alpha beta).

    This is summed over the classes, and s = alpha + beta. (1, 0) is KL(p || q) and (0, 1) is KL(q || p). Where a
    divisor is 0, it is the limit:

    * beta = 0: [p^alpha log(p^alpha / q^alpha) - p^alpha + q^alpha] / alpha^2,
    * alpha = 0: [q^beta log(q^beta / p^beta) - q^beta + p^beta] / beta^2,
    * s = 0: [log(q^alpha / p^alpha) + (p / q)^alpha - 1] / alpha^2,
    * alpha = beta = 0: (log p - log q)^2 / 2.

    ABKD's code divides by alpha or beta where these divide by the square, so its numbers are other ones there unless
    the exponent is 1 or -1. Here, every class's term is (log p - log q)^2 times the second divided difference of exp at
    s log p, alpha log p + beta log q and s log q, which is positive and has the limits in it.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      alpha: Exponent of the teacher's probabilities; ABKD's 0.8 for resnet56 and resnet20.
      beta: Exponent of the student's probabilities; ABKD's 0.3 for resnet56 and resnet20. Negative sums of exponents
        make the value explode for confident outputs; (1, -1) is refused.
      temperature: Temperature T of both softmaxes, above 0; ABKD's is 4, without a factor T^2.
      mode: How a top-k teacher's other classes are counted: 'tail' or 'renormalize'.
      where: Boolean array [...] of the examples that count. One that does not count and has logits of NaN or infinity
        gives 0 instead of NaN.

    Returns:
      Divergence of each example [...], at least 0.

    Raises:
      ValueError: The shapes differ, or a hyper-parameter is out of range.

    References:
      Wang, Yang, Wang, Wang, Xu & Huang, 2025, "ABKD: Pursuing a Proper Allocation of the Probability Mass in
      Knowledge Distillation via alpha-beta-Divergence", https://arxiv.org/abs/2505.04560
    """
    check_range("alpha", alpha, "alpha_beta")
    check_range("beta", beta, "alpha_beta")
    check_combination("alpha_beta", {"alpha": alpha, "beta": beta})
    pair = as_pair("alpha_beta", student_logits, teacher_logits, temperature=temperature, mode=mode)
    compared = compare(pair.student, pair.teacher)
    present = ~jnp.isnan(compared.d)  # not excluded by both sides
    d = finite(compared).d
    log_p, log_q = (_log_probabilities(logits) for logits in (pair.teacher, pair.student))
    points = ((alpha + beta) * log_p, alpha * log_p + beta * log_q, (alpha + beta) * log_q)
    terms = d**2 * exp_difference(*(jnp.where(present, point, 0) for point in points))
    return values_of(pair, jnp.sum(terms, axis=-1), where)


# Kind of a divergence -> its function. Each is a row of LOSSES, too.
DIVERGENCES: dict[str, Callable[..., Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "alpha_beta": alpha_beta,
}


def divergence(student_logits: Array, teacher_logits: Array | TopK, *, kind: str, **options: Any) -> Array:
    """Computes the divergence of a kind between the student's and the teacher's distribution.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes], or a TopK of [..., k].
      kind: A key of DIVERGENCES, such as 'forward_kl'.
      options: Keyword arguments of the function of that kind: temperature, mode, where and its own.

    Returns:
      Divergence of each example [...], at least 0.

    Raises:
      ValueError: There is no such kind, the shapes differ, or an option is out of range.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"kind must be one of {', '.join(DIVERGENCES)}, not {kind!r}.")
    return DIVERGENCES[kind](student_logits, teacher_logits, **options)


def _sampled_kl(student_logits: Array, teacher: Sampled, temperature: float, where: Array | None) -> Array:
    check_range("temperature", temperature)
    if not isinstance(temperature, Tracer) and temperature != 1:
        raise ValueError(f"a sampled teacher needs temperature 1, not {temperature!r}: it was drawn at that.")
    student = as_logits(student_logits, "student_logits")
    values, good = sampled_values(student, teacher, less_entropy=True)
    # A traced temperature cannot be refused.
    return values_of(Pair(student, student, good & (jnp.asarray(temperature) == 1)), values, where)


def _skewed(compared: Comparison, share: float) -> Array:
    """Returns KL(p || share p + (1 - share) q) [...]."""
    p, q, d = compared
    return jnp.sum(excess(p, share * p + (1 - share) * q, log_mixture(d, share)), axis=-1)


def _reciprocal(divisor: Array) -> Array:
    """Returns 1 / divisor, and 0 where the divisor is 0: there what is divided vanishes faster than it."""
    none = divisor == 0
    return jnp.where(none, 0, 1 / jnp.where(none, 1, divisor))


def _log_probabilities(logits: Array) -> Array:
    """Returns the log-probabilities [..., classes] of centred logits, a far negative number for a probability of 0."""
    log_probs = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    return jnp.where(logits == -jnp.inf, -_FAR, log_probs)
