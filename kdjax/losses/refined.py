"""KD losses that correct the teacher example by example: by weights, by its spread, or by the label."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, check_range, expectation, sound_rows
from kdjax.losses._labels import is_label_of, taken_apart
from kdjax.losses._softmax import centred, kl


def wsl(student_logits: Array, teacher_logits: Array, labels: Array, *, temperature: float = 4.0) -> Array:
    """Computes the weighted-soft-labels loss T^2 w CE(p, q) with w = 1 - exp(-CE_student / CE_teacher).

    Both cross-entropies in the weight w are with the label at temperature 1. The weight is therefore
    small for an example on which the student is already better than the teacher. No gradient flows through w.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels [...] in [0, classes).
      temperature: Temperature T of both sides, above 0.

    Returns:
      Loss of each example [...] in nats, at least 0: a cross-entropy, so that it is not 0 where both sides are equal.
      It is NaN for a label outside [0, classes).

    Raises:
      ValueError: The shapes differ, the labels are not integers [...], or the temperature is out of range.

    References:
      Zhou, Song, Chen, Zhou, Wang, Yuan & Zhang, 2021, "Rethinking Soft Labels for Knowledge Distillation: A
      Bias-Variance Tradeoff Perspective", https://arxiv.org/abs/2102.00650
    """
    check_range("temperature", temperature)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "wsl"))
    is_label, exists = is_label_of(labels, student)
    own, other = (-jnp.sum(jnp.where(is_label, jax.nn.log_softmax(x), 0), axis=-1) for x in (student, teacher))
    weight = lax.stop_gradient(-jnp.expm1(-own / (other + 1e-7)))
    soft = -expectation(jax.nn.softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))
    return jnp.where(exists & good, temperature**2 * weight * soft, jnp.nan)


def normkd(student_logits: Array, teacher_logits: Array, *, scale: float = 2.0) -> Array:
    """Computes the NormKD loss (c s_t)^2 KL(softmax(z_t / (c s_t)) || softmax(z_s / (c s_s))), s a row's deviation.

    Each side has a temperature of its own for each example: the unbiased standard deviation of its logits times c. The
    gradient flows through the student's too.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      scale: Factor c of the deviations, above 0.

    Returns:
      Loss of each example [...], at least 0. It is NaN where all logits of a side are equal, as in the paper's code.

    Raises:
      ValueError: The shapes differ, there is one class, or the scale is out of range.

    References:
      Chi, Zheng, Li, Yang, Wu, Lin & Cai, 2023, "NormKD: Normalized Logits for Knowledge Distillation",
      https://arxiv.org/abs/2308.00520
    """
    check_range("scale", scale)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "normkd"))
    if student.shape[-1] < 2:
        raise ValueError(f"logits {list(student.shape)} must have at least two classes.")
    own, other = (scale * jnp.std(logits, axis=-1, ddof=1, keepdims=True) for logits in (student, teacher))
    (own_row, own_good), (other_row, other_good) = centred(student / own), centred(teacher / other)
    return jnp.where(good & own_good & other_good, other[..., 0] ** 2 * kl(own_row, other_row), jnp.nan)


def rld(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    label_temperature: float = 1.0,
) -> Array:
    """Computes the refined-logit-distillation loss alpha T_y^2 SCD + beta T^2 MCD.

    SCD is KL((p_max, 1 - p_max) || (q_y, 1 - q_y)): the student's probability of the label is drawn to the teacher's
    largest probability, whichever class has it. MCD is the KL divergence of the softmaxes over those classes
    alone whose teacher logit is below the label's. Where there is no such class, MCD and its gradient are 0.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels [...] in [0, classes).
      alpha: Weight of SCD.
      beta: Weight of MCD.
      temperature: Temperature T of MCD, above 0.
      label_temperature: Temperature T_y of SCD, above 0. The paper's configs have 1; its commands have that of MCD.

    Returns:
      Loss of each example [...] in nats, at least 0 for weights of at least 0; NaN for a label outside [0, classes).

    Raises:
      ValueError: The shapes differ, the labels are not integers [...], or a temperature is out of range.

    References:
      Sun, Chen, Lyu, Chen, Chen & Wang, 2025, "Knowledge Distillation with Refined Logits",
      https://arxiv.org/abs/2408.07703
    """
    check_range("temperature", temperature)
    check_range("label_temperature", label_temperature)
    student, teacher = as_logit_pair(student_logits, teacher_logits, "rld")
    is_label, exists = is_label_of(labels, student)
    is_top = jnp.arange(teacher.shape[-1]) == jnp.argmax(teacher, axis=-1)[..., None]
    own, _, own_good = taken_apart(student, is_label, label_temperature)
    top, _, top_good = taken_apart(teacher, is_top, label_temperature)
    kept = teacher < jnp.sum(jnp.where(is_label, teacher, 0), axis=-1, keepdims=True)
    rows = (centred(jnp.where(kept, logits / temperature, -jnp.inf))[0] for logits in (student, teacher))
    loss = alpha * label_temperature**2 * kl(own, top) + beta * temperature**2 * kl(*rows)
    return jnp.where(exists & own_good & top_good, loss, jnp.nan)
