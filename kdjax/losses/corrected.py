"""Distillation corrected to first order for the error of the teacher's probabilities, by the labels.

The teacher p estimates the posterior. The correction is the derivative of the loss in p, times the residual y - p, so
that a small error of p changes the expected loss in second order only. The teacher should not have been trained on the
example: `config.ensemble = 'held_out'`.

Reference: Dao, Kamath, Syrgkanis & Mackey, 2021, "Knowledge Distillation as Semiparametric Inference",
https://arxiv.org/abs/2104.09732
"""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_logit_pair, as_targets, check_range, expectation
from kdjax.losses._pairs import as_pair
from kdjax.losses._softmax import kl


def corrected_kd(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature: float = 4.0,
    floor: float = 0.01,
    teacher_smoothing: float = 0.0,
) -> Array:
    """Computes KD with the first-order loss correction (KDOrtho): T^2 (KL(w || q_T) + (y - p) . d/dp CE(w(p), q_T)).

    With p = softmax(teacher_logits), w = softmax(teacher_logits / T), q_T = softmax(student_logits / T) and the
    residuals r_k = y_k / max(p_k, floor) - 1, the correction is
    (1 / T) ((sum_k r_k w_k) (sum_k w_k log q_T,k) - sum_k r_k w_k log q_T,k), where p is not below the floor.

    The loss may be negative and is not bounded below, so the paper's code clips the gradients at 0.1.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels y [...] in [0, classes), or label probabilities [..., classes].
      temperature: Temperature T of both softmaxes, above 0.
      floor: Smallest probability that the residuals divide by, in [0, 1); with 0, and no smoothing, the loss overflows
        where the teacher gives the label no probability.
      teacher_smoothing: Share s that is spread evenly over the classes of p in the residuals, in [0, 1]:
        p <- (1 - s) p + s / classes. The released code takes either the floor or this.

    Returns:
      Loss of each example [...] in nats, of either sign. It is NaN for an integer label outside [0, classes).

    Raises:
      ValueError: The shapes do not match, or a hyper-parameter is out of range.

    References:
      Dao, Kamath, Syrgkanis & Mackey, 2021, "Knowledge Distillation as Semiparametric Inference",
      https://arxiv.org/abs/2104.09732
    """
    for name, value in (("temperature", temperature), ("floor", floor), ("teacher_smoothing", teacher_smoothing)):
        check_range(name, value)
    student, teacher = as_logit_pair(student_logits, teacher_logits, "corrected_kd")
    targets, exists = as_targets(labels, student)
    p = (1 - teacher_smoothing) * jax.nn.softmax(teacher) + teacher_smoothing / teacher.shape[-1]
    residuals = targets / jnp.maximum(p, floor) - 1
    pair = as_pair("kd", student, teacher, temperature=temperature, mode="tail")
    w = jax.nn.softmax(pair.teacher)
    # Centred logits in place of log q: what all classes share cancels in the correction, and costs digits at a high T.
    distance = pair.student - expectation(w, pair.student)[..., None]
    correction = -expectation(residuals * w, distance)
    loss = temperature**2 * (kl(pair.student, pair.teacher) + correction / temperature)
    return jnp.where(exists & pair.good, loss, jnp.nan)
