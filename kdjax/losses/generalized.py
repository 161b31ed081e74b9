"""GKL: the KL divergence taken apart into a squared error of the logits' differences and a cross-entropy."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_class_matrix, as_logit_pair, as_where, check_range, expectation, sound_rows
from kdjax.losses._labels import is_label_of


def gkl(
    student_logits: Array,
    teacher_logits: Array,
    *,
    alpha: float = 1.0,
    beta: float = 16.0,
    gamma: float = 0.05,
    temperature: float = 4.0,
    teacher_temperature: float = 4.0,
    where: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the generalised-KL loss alpha CE(p_T, q_T) + beta wMSE, without a factor T^2.

    wMSE = (1/4) sum_n sum_ij w_i w_j (d_i - d_j)^2 / sum_n sum_ij w_i w_j with d = teacher_logits - student_logits and
    w = softmax(teacher_logits / T_w)^gamma. The sums over classes i and j are computed in the time of one. The quotient
    is one of sums over the batch, so an example with a flat w counts more.

    The weights here are each example's own; those of `class_gkl` are the means of the teacher's outputs in each class.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      alpha: Weight of the cross-entropy.
      beta: Weight of the squared error.
      gamma: Power of the weights w, above 0.
      temperature: Temperature T of the cross-entropy, above 0.
      teacher_temperature: Temperature T_w of the weights w, above 0.
      where: Boolean array [...] of the examples that count in the sums over the batch; None counts all. They run over
        all leading axes.
      axis_name: Name of the mapped axis of the devices that share the batch; the sums then run over all devices. Do not
        differentiate with respect to the teacher through it: the gradient of `psum` adds up over devices.

    Returns:
      Loss of each example [...], whose mean over those that count is the paper's loss; at least 0 for weights of at
      least 0, and not 0 where both sides are equal, as the cross-entropy is not.

    Raises:
      ValueError: The shapes do not match, or a hyper-parameter is out of range.

    References:
      Cui, Zhu, Xu, Tian, Qi, Yu, Zhang & Hong, 2025, "Generalized Kullback-Leibler Divergence Loss", https://arxiv.org/abs/2503.08038
      Cui, Tian, Zhong, Qi, Yu & Zhang, 2024, "Decoupled Kullback-Leibler Divergence Loss",
      https://arxiv.org/abs/2305.13948
    """
    for name, value in (("gamma", gamma), ("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        check_range(name, value)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "gkl"))
    weights = jnp.exp(gamma * jax.nn.log_softmax(teacher / teacher_temperature))
    soft = _soft(student, teacher, temperature)
    error = _error(student, teacher, weights, as_where(where, student), axis_name)
    return jnp.where(good, alpha * soft + beta * error, jnp.nan)


def class_gkl(
    student_logits: Array,
    teacher_logits: Array,
    class_outputs: Array,
    labels: Array,
    *,
    alpha: float = 1.0,
    beta: float = 16.0,
    gamma: float = 0.05,
    temperature: float = 4.0,
    where: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the generalised-KL loss of `gkl` with the weights w = Q_y^gamma, Q_y the mean output of class y.

    The mean outputs are those of the teacher's softmax(teacher_logits / T_w) over the examples of each class in the
    epoch before, and uniform in the first epoch. With gamma = 1 the weights add up to 1, and the loss is IKL, the form
    of the paper of 2024, whose squared error is summed over pairs and divided by the number of examples.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      class_outputs: Mean outputs Q of the classes, probabilities [classes, classes], the class first.
      labels: Integer labels y [...] in [0, classes).
      alpha: Weight of the cross-entropy.
      beta: Weight of the squared error.
      gamma: Power of the weights w, above 0.
      temperature: Temperature T of the cross-entropy, above 0.
      where: Boolean array [...] of the examples that count in the sums over the batch; None counts all. They run over
        all leading axes.
      axis_name: Name of the mapped axis of the devices that share the batch; the sums then run over all devices.

    Returns:
      Loss of each example [...], whose mean over those that count is the paper's loss; at least 0 for weights of at
      least 0, and NaN for a label outside [0, classes).

    Raises:
      ValueError: The shapes do not match, or a hyper-parameter is out of range.

    References:
      Cui, Zhu, Xu, Tian, Qi, Yu, Zhang & Hong, 2025, "Generalized Kullback-Leibler Divergence Loss", https://arxiv.org/abs/2503.08038
      Cui, Tian, Zhong, Qi, Yu & Zhang, 2024, "Decoupled Kullback-Leibler Divergence Loss",
      https://arxiv.org/abs/2305.13948
    """
    check_range("gamma", gamma)
    check_range("temperature", temperature)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "class_gkl"))
    is_label, exists = is_label_of(labels, student)
    outputs = as_class_matrix(class_outputs, student, "class_outputs")
    mean = outputs[jnp.argmax(is_label, axis=-1)]
    weights = jnp.where(mean > 0, jnp.where(mean > 0, mean, 1) ** gamma, 0)
    error = _error(student, teacher, weights, as_where(where, student) & exists, axis_name)
    return jnp.where(exists & good, alpha * _soft(student, teacher, temperature) + beta * error, jnp.nan)


def _soft(student: Array, teacher: Array, temperature: float) -> Array:
    """Returns the cross-entropy [...] of both softmaxes at a temperature."""
    return -expectation(jax.nn.softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))


def _error(student: Array, teacher: Array, weights: Array, counted: Array, axis_name: str | None) -> Array:
    """Returns each example's share [...] of wMSE, times the number of examples that count."""
    total = jnp.sum(weights, axis=-1)
    difference = jnp.where(weights > 0, teacher - student, 0)
    # Less its mean, so that nothing cancels: sum_ij w_i w_j (d_i - d_j)^2 = 2 W sum_i w_i (d_i - mean)^2.
    centre = jnp.sum(weights * difference, axis=-1, keepdims=True) / total[..., None]
    error = total * jnp.sum(weights * (difference - centre) ** 2, axis=-1) / 2
    return error / _mean(total**2, counted, axis_name)


def _mean(values: Array, counted: Array, axis_name: str | None) -> Array:
    """Returns the mean [] of the values that count over the global batch, or 1 if none counts."""
    total, count = jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
