"""Losses on logits that treat the label's class apart from the others, or compare rows and columns of the batch."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, as_mask, check_range, expectation
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
      student_logits: Student logits [batch, classes], at least two classes.
      teacher_logits: Teacher logits [batch, classes].
      labels: Integer labels [batch] in [0, classes).
      alpha: Weight of TCKD.
      beta: Weight of NCKD.
      temperature: Temperature T of both sides, above 0.
      standardize: Whether to z-score the logits of both sides first; see `kdjax.losses.standardize_logits`.

    Returns:
      Loss of each example [batch] in nats; at least 0 for weights of at least 0.

    Raises:
      ValueError: The shapes differ, the labels are not integers [batch], or a hyper-parameter is out of range.

    References:
      Zhao, Cui, Song, Qiu & Liang, 2022, "Decoupled Knowledge Distillation", eq. 7,
      https://arxiv.org/abs/2203.08679
    """
    check_range("temperature", temperature)
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits), standardize)
    is_label = _is_label(labels, student)
    sides = [_split_at_label(logits / temperature, is_label) for logits in (student, teacher)]
    (s_label, s_rest, s_within), (t_label, t_rest, t_within) = sides
    binary = jnp.exp(t_label) * (t_label - s_label) + jnp.exp(t_rest) * (t_rest - s_rest)
    within = expectation(jnp.where(is_label, 0, jnp.exp(t_within)), t_within - s_within)
    return temperature**2 * (alpha * binary + beta * within)


def nkd(
    student_logits: Array, teacher_logits: Array, labels: Array, *, gamma: float = 1.5, temperature: float = 1.0
) -> Array:
    """Computes the normalised-KD loss -p_y log q_y - gamma T^2 sum_k p'_k log q'_k over the classes k other than y.

    p' and q' are the softmax at temperature T over the classes other than the label y. The paper adds a cross-entropy
    of weight 1, which is a loss of its own here.

    Args:
      student_logits: Student logits [batch, classes], at least two classes.
      teacher_logits: Teacher logits [batch, classes].
      labels: Integer labels y [batch] in [0, classes).
      gamma: Weight of the other classes' term, above 0.
      temperature: Temperature T of the other classes' term, above 0.

    Returns:
      Loss of each example [batch] in nats, at least 0. Both terms are cross-entropies, so the loss is not 0 where the
      student equals the teacher.

    Raises:
      ValueError: The shapes differ, the labels are not integers [batch], or a hyper-parameter is out of range.

    References:
      Yang, Zeng, Li, Zhang, Yuan & Li, 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
      Approach with Normalized Loss and Customized Soft Labels", eq. 6, https://arxiv.org/abs/2303.13005
    """
    check_range("temperature", temperature)
    check_range("gamma", gamma)
    student, teacher = as_logit_pair(student_logits, teacher_logits)
    is_label = _is_label(labels, student)
    teacher_prob = jnp.sum(jnp.where(is_label, jax.nn.softmax(teacher), 0), axis=-1)
    label_term = -teacher_prob * jnp.sum(jnp.where(is_label, jax.nn.log_softmax(student), 0), axis=-1)
    _, _, s_within = _split_at_label(student / temperature, is_label)
    _, _, t_within = _split_at_label(teacher / temperature, is_label)
    others_term = -expectation(jnp.where(is_label, 0, jnp.exp(t_within)), s_within)
    return label_term + gamma * temperature**2 * others_term


def dist(
    student_logits: Array,
    teacher_logits: Array,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 4.0,
    mask: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the DIST loss T^2 (inter_weight (1 - r_rows) + intra_weight (1 - r_columns)), r a Pearson correlation.

    r_rows correlates an example's student and teacher probabilities over classes. r_columns correlates a class's
    student and teacher probabilities over the batch, averaged over classes.

    Args:
      student_logits: Student logits [batch, classes].
      teacher_logits: Teacher logits [batch, classes].
      inter_weight: Weight of the rows' term, which differs by example (the paper's beta).
      intra_weight: Weight of the columns' term, one number for the batch (the paper's gamma).
      temperature: Temperature T of both sides, above 0.
      mask: Mask [batch] of the examples that count in the columns; None counts all.
      axis_name: Name of the mapped axis of the devices that share the batch; columns then reach over all devices.

    Returns:
      The rows' term of each example plus the columns' term of the batch [batch], so that the mean over the batch is
      the paper's loss; in [0, 2 T^2 (inter_weight + intra_weight)].

    Raises:
      ValueError: The shapes differ, or the temperature is out of range.

    References:
      Huang, You, Wang, Qian & Xu, 2022, "Knowledge Distillation from A Stronger Teacher", eq. 10,
      https://arxiv.org/abs/2205.10536
    """
    check_range("temperature", temperature)
    student, teacher = as_logit_pair(student_logits, teacher_logits)
    counted = as_mask(mask, student)
    q, p = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    inter = 1 - _pearson(q, p, jnp.ones_like(q))
    if axis_name is not None:
        q, p, counted = (lax.all_gather(part, axis_name, axis=0, tiled=True) for part in (q, p, counted))
    weights = jnp.broadcast_to(counted.astype(q.dtype), q.T.shape)
    intra = 1 - jnp.mean(_pearson(q.T, p.T, weights))
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


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


def _is_label(labels: Array, logits: Array) -> Array:
    """Returns a boolean array [batch, classes], true at each example's label."""
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers [batch], not {labels.dtype} {list(labels.shape)} beside logits "
            f"{list(logits.shape)}."
        )
    if logits.shape[1] < 2:
        raise ValueError(f"logits {list(logits.shape)} must have at least two classes.")
    return jnp.arange(logits.shape[1]) == labels[:, None]


def _split_at_label(logits: Array, is_label: Array) -> tuple[Array, Array, Array]:
    """Splits a softmax at the label's class, in log space.

    Returns:
      Log-probability of the label [batch]; log of the sum of all others [batch]; log-probabilities of the softmax over
      the other classes alone [batch, classes], 0 at the label.
    """
    log_probs = jax.nn.log_softmax(logits)
    label = jnp.sum(jnp.where(is_label, log_probs, 0), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, log_probs), axis=-1)
    # Masked by -inf before the softmax, as log(1 - p_label) would lose all precision where p_label is nearly 1.
    within = jnp.where(is_label, 0, jax.nn.log_softmax(jnp.where(is_label, -jnp.inf, logits)))
    return label, rest, within
