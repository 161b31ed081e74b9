"""TeKAP: more teachers made of one by noise on its logits."""

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float, as_logit_pair, check_range
from kdjax.losses.logits import kd


def tekap(
    student_logits: Array,
    teacher_logits: Array,
    noise: Array,
    *,
    share: float = 0.1,
    noisy_weight: float = 0.8,
    temperature: float = 4.0,
) -> Array:
    """Computes TeKAP's loss of logits, KD(z_t) + noisy_weight sum_i KD((1 - share) z_t + share noise_i).

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits z_t [..., classes].
      noise: Standard normal noise [..., copies, classes].
      share: Share of the noise in a noisy teacher's logits, in [0, 1].
      noisy_weight: Weight of each noisy teacher.
      temperature: Temperature T of KD, above 0.

    Returns:
      Loss of each example [...] in nats, at least 0 for a weight of at least 0.

    Raises:
      ValueError: The shapes do not match, or a hyper-parameter is out of range.

    References:
      Hossain et al., 2025, "Single Teacher, Multiple Perspectives: Teacher Knowledge Augmentation for Enhanced
      Knowledge Distillation", ICLR 2025.
    """
    check_range("share", share)
    student, teacher = as_logit_pair(student_logits, teacher_logits, "tekap")
    noise = as_float(noise).astype(teacher.dtype)
    if noise.ndim != teacher.ndim + 1 or noise.shape[:-2] + noise.shape[-1:] != teacher.shape:
        raise ValueError(f"noise {list(noise.shape)} must be [..., copies, classes] for logits {list(teacher.shape)}.")
    noisy = (1 - share) * teacher[..., None, :] + share * noise
    others = kd(jnp.broadcast_to(student[..., None, :], noisy.shape), noisy, temperature=temperature)
    return kd(student, teacher, temperature=temperature) + noisy_weight * jnp.sum(others, axis=-1)
