"""Logit losses that take the label's class apart from the others, or examples and classes apart."""

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
    """Decoupled KD, T^2 (alpha KL of target against the rest + beta KL within the rest) (Zhao et al., 2022, eq. 7).

    Args:
      student_logits: [batch, classes], two classes at least.
      teacher_logits: [batch, classes].
      labels: [batch] integers.
      alpha: weight of the target class's term.
      beta: weight of the others' term; with alpha = 1 and beta = 1 - p_T(label) the sum is KD's.
      temperature: T, above 0, of both sides.
      standardize: whether both sides' logits are standardised first.

    Returns:
      [batch] in nats.

    Raises:
      ValueError: the shapes differ, labels are not integers [batch], or a hyper-parameter is out of range.
    """
    check_range("temperature", temperature)
    student, teacher = standardized(*as_logit_pair(student_logits, teacher_logits), standardize)
    target = _target(labels, student)
    sides = [_parted(logits / temperature, target) for logits in (student, teacher)]
    (s_target, s_rest, s_within), (t_target, t_rest, t_within) = sides
    binary = jnp.exp(t_target) * (t_target - s_target) + jnp.exp(t_rest) * (t_rest - s_rest)
    within = expectation(jnp.where(target, 0, jnp.exp(t_within)), t_within - s_within)
    return temperature**2 * (alpha * binary + beta * within)


def nkd(
    student_logits: Array, teacher_logits: Array, labels: Array, *, gamma: float = 1.5, temperature: float = 1.0
) -> Array:
    """Normalized KD: -p_y log q_y - gamma T^2 Σ_k p̂_k log q̂_k over the other classes (Yang et al., 2023, eq. 6).

    p̂ and q̂ are the softmax at T over the classes but the label's. The formula is that of 'From Knowledge Distillation
    to Self-Knowledge Distillation' and its code; add a cross-entropy of weight 1 as it does.

    Args:
      student_logits: [batch, classes], two classes at least.
      teacher_logits: [batch, classes].
      labels: [batch] integers.
      gamma: weight of the other classes' term, above 0.
      temperature: T, above 0, of that term.

    Returns:
      [batch] in nats; at its least where p_y = 1 is matched and q̂ = p̂, not 0.

    Raises:
      ValueError: the shapes differ, labels are not integers [batch], or a hyper-parameter is out of range.
    """
    check_range("temperature", temperature)
    check_range("gamma", gamma)
    student, teacher = as_logit_pair(student_logits, teacher_logits)
    target = _target(labels, student)
    taught = jnp.sum(jnp.where(target, jax.nn.softmax(teacher), 0), axis=-1)
    own = -taught * jnp.sum(jnp.where(target, jax.nn.log_softmax(student), 0), axis=-1)
    _, _, s_within = _parted(student / temperature, target)
    _, _, t_within = _parted(teacher / temperature, target)
    others = -expectation(jnp.where(target, 0, jnp.exp(t_within)), s_within)
    return own + gamma * temperature**2 * others


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
    """DIST: T^2 (1 - correlation of q_T's and p_T's rows, and likewise of their columns) (Huang et al., 2022, eq. 10).

    Args:
      student_logits: [batch, classes].
      teacher_logits: [batch, classes].
      inter_weight: of the rows' term, one value an example (the paper's beta).
      intra_weight: of the columns' term, one value for the batch (the paper's gamma).
      temperature: T, above 0.
      mask: [batch], the examples that the columns hold; None for all.
      axis_name: of the devices that share the batch, whose columns are those of all of them.

    Returns:
      [batch], the rows' term of each example plus the columns' term, so that the mean is the paper's loss.

    Raises:
      ValueError: the shapes differ, or the temperature is out of range.
    """
    check_range("temperature", temperature)
    student, teacher = as_logit_pair(student_logits, teacher_logits)
    mask = as_mask(mask, student)
    q, p = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    inter = 1 - _pearson(q, p, jnp.ones_like(q))
    if axis_name is not None:
        q, p, mask = (lax.all_gather(part, axis_name, axis=0, tiled=True) for part in (q, p, mask))
    weights = jnp.broadcast_to(mask.astype(q.dtype), q.T.shape)
    intra = 1 - jnp.mean(_pearson(q.T, p.T, weights))
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _pearson(a: Array, b: Array, weights: Array, epsilon: float = 1e-8) -> Array:
    """Correlation along the last axis of what has weight 1; 0 where one side does not vary."""
    count = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1)
    a, b = ((x - jnp.sum(x * weights, axis=-1, keepdims=True) / count) * weights for x in (a, b))
    norms = [jnp.sum(x**2, axis=-1) for x in (a, b)]
    product = _root(norms[0]) * _root(norms[1])
    return jnp.sum(a * b, axis=-1) / (product + epsilon)


def _root(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _target(labels: Array, logits: Array) -> Array:
    """[batch, classes] True at the label."""
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers [batch], not {labels.dtype} {list(labels.shape)} beside logits "
            f"{list(logits.shape)}."
        )
    if logits.shape[1] < 2:
        raise ValueError(f"logits {list(logits.shape)} must have two classes at least.")
    return jnp.arange(logits.shape[1]) == labels[:, None]


def _parted(logits: Array, target: Array) -> tuple[Array, Array, Array]:
    """Log-probability of the target [batch], of all others together [batch], and of each within the others."""
    log_probs = jax.nn.log_softmax(logits)
    own = jnp.sum(jnp.where(target, log_probs, 0), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(target, -jnp.inf, log_probs), axis=-1)
    within = jnp.where(target, 0, jax.nn.log_softmax(jnp.where(target, -jnp.inf, logits)))
    return own, rest, within
