"""Losses on logits that treat the label's class apart from the others, or compare rows and columns of the batch."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, as_where, check_range, expectation, sound_rows
from kdjax.losses._labels import is_label_of, taken_apart
from kdjax.losses._softmax import kl
from kdjax.losses.logits import standardized


def dkd(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Array:
    """Computes the decoupled-KD loss T^2 (alpha TCKD + beta NCKD).

    TCKD is the KL divergence between the two-class distributions 'label' and 'any other class'. NCKD is the KL
    divergence between the distributions over the other classes alone. With alpha = 1 and beta = 1 - p_T(label) the sum
    is the KD loss.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels [...] in [0, classes).
      alpha: Weight of TCKD.
      beta: Weight of NCKD.
      temperature: Temperature T of both sides, above 0.
      standardize: Whether to z-score the logits of both sides first; see `kdjax.losses.standardize_logits`.

    Returns:
      Loss of each example [...] in nats; at least 0 for weights of at least 0. It is NaN for a label outside
      [0, classes), since a compiled function cannot raise an error that depends on values. In float32 the label's term
      keeps three digits at T = 1,000 for logits of size 1.

    Raises:
      ValueError: The shapes differ, the labels are not integers [...], or a hyper-parameter is out of range.

    References:
      Zhao, Cui, Song, Qiu & Liang, 2022, "Decoupled Knowledge Distillation", eq. 7,
      https://arxiv.org/abs/2203.08679
    """
    check_range("temperature", temperature)
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits, "dkd"), standardize)
    is_label, exists = is_label_of(labels, student)
    (s_two, s_others, s_good), (t_two, t_others, t_good) = (
        taken_apart(logits, is_label, temperature) for logits in (student, teacher)
    )
    loss = temperature**2 * (alpha * kl(s_two, t_two) + beta * kl(s_others, t_others))
    return jnp.where(exists & s_good & t_good, loss, jnp.nan)


def nkd(
    student_logits: Array, teacher_logits: Array, labels: Array, *, gamma: float = 1.5, temperature: float = 1.0
) -> Array:
    """Computes the normalised-KD loss -p_y log q_y - gamma T^2 sum_k p'_k log q'_k over the classes k other than y.

    p' and q' are the softmax at temperature T over the classes other than the label y. The paper adds a cross-entropy
    of weight 1, which is a loss of its own here.

    Args:
      student_logits: Student logits [..., classes], at least two classes.
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels y [...] in [0, classes).
      gamma: Weight of the other classes' term, above 0.
      temperature: Temperature T of the other classes' term, above 0.

    Returns:
      Loss of each example [...] in nats, at least 0. Both terms are cross-entropies, so the loss is not 0 where the
      student equals the teacher. It is NaN for a label outside [0, classes).

    Raises:
      ValueError: The shapes differ, the labels are not integers [...], or a hyper-parameter is out of range.

    References:
      Yang, Zeng, Li, Zhang, Yuan & Li, 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
      Approach with Normalized Loss and Customized Soft Labels", eq. 6, https://arxiv.org/abs/2303.13005
    """
    check_range("temperature", temperature)
    check_range("gamma", gamma)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "nkd"))
    is_label, exists = is_label_of(labels, student)
    teacher_prob = jnp.sum(jnp.where(is_label, jax.nn.softmax(teacher), 0), axis=-1)
    label_term = -teacher_prob * jnp.sum(jnp.where(is_label, jax.nn.log_softmax(student), 0), axis=-1)
    _, _, s_within = _split_at_label(student / temperature, is_label)
    _, _, t_within = _split_at_label(teacher / temperature, is_label)
    others_term = -expectation(jnp.where(is_label, 0, jnp.exp(t_within)), s_within)
    return jnp.where(exists & good, label_term + gamma * temperature**2 * others_term, jnp.nan)


def dist(
    student_logits: Array,
    teacher_logits: Array,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 4.0,
    where: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the DIST loss T^2 (inter_weight (1 - r_rows) + intra_weight (1 - r_columns)), r a Pearson correlation.

    The paper's code adds 1e-8 to the denominator of r, and so does this. At temperatures above about 100, where all
    probabilities are nearly equal, that is no longer small and draws r to 0.

    r_rows correlates an example's student and teacher probabilities over classes. r_columns correlates a class's
    student and teacher probabilities over the batch, averaged over classes.

    Args:
      student_logits: Student logits [..., classes].
      teacher_logits: Teacher logits [..., classes].
      inter_weight: Weight of the rows' term, which differs by example (the paper's beta).
      intra_weight: Weight of the columns' term, one number for the batch (the paper's gamma).
      temperature: Temperature T of both sides, above 0.
      where: Boolean array [...] of the examples that count in the columns; None counts all. The columns run over all
        leading axes.
      axis_name: Name of the mapped axis of the devices that share the batch; columns then reach over all devices.

    Returns:
      The rows' term of each example plus the one columns' term [...], so that the mean over the batch is
      the paper's loss; in [0, 2 T^2 (inter_weight + intra_weight)].

    Raises:
      ValueError: The shapes differ, or the temperature is out of range.

    References:
      Huang, You, Wang, Qian & Xu, 2022, "Knowledge Distillation from A Stronger Teacher", eq. 10,
      https://arxiv.org/abs/2205.10536
    """
    check_range("temperature", temperature)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "dist"))
    counted = as_where(where, student).reshape(-1)
    q, p = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    inter = 1 - _pearson(q, p, jnp.ones_like(q))
    q, p = (probs.reshape(-1, probs.shape[-1]) for probs in (q, p))
    if axis_name is not None:
        q, p, counted = (lax.all_gather(part, axis_name, axis=0, tiled=True) for part in (q, p, counted))
    weights = jnp.broadcast_to(counted.astype(q.dtype), q.T.shape)
    intra = 1 - jnp.mean(_pearson(q.T, p.T, weights))
    return jnp.where(good, temperature**2 * (inter_weight * inter + intra_weight * intra), jnp.nan)


def _pearson(a: Array, b: Array, weights: Array, epsilon: float = 1e-8) -> Array:
    """Returns the correlation along the last axis of the entries of weight 1; 0 where one side is constant.

    The paper's code has the same epsilon in the denominator, so equal sides have a correlation slightly below 1.
    """
    count = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1)
    a, b = ((x - jnp.sum(x * weights, axis=-1, keepdims=True) / count) * weights for x in (a, b))
    norms = [jnp.sum(x**2, axis=-1) for x in (a, b)]
    product = _root(norms[0]) * _root(norms[1])
    return jnp.sum(a * b, axis=-1) / (product + epsilon)


def _root(x: Array) -> Array:
    """Returns the square root with a gradient of 0 at 0, where that of sqrt is infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _split_at_label(logits: Array, is_label: Array) -> tuple[Array, Array, Array]:
    """Splits a softmax at the label's class, in log space.

    Returns:
      Log-probability of the label [...]; log of the sum of all others [...]; log-probabilities of the softmax over
      the other classes alone [..., classes], 0 at the label.
    """
    log_probs = jax.nn.log_softmax(logits)
    label = jnp.sum(jnp.where(is_label, log_probs, 0), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, log_probs), axis=-1)
    # Masked by -inf before the softmax, as log(1 - p_label) would lose all precision where p_label is nearly 1.
    within = jnp.where(is_label, 0, jax.nn.log_softmax(jnp.where(is_label, -jnp.inf, logits)))
    return label, rest, within
