"""MLKD: agreement of examples, of classes and of the batch, at several temperatures and in two views.

Reference: Jin, Wang & Lin, 2023, "Multi-Level Logit Distillation", CVPR 2023.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logit_pair, as_where, check_range
from kdjax.losses.logits import kd

# Temperatures of the released code after the one that its configs set. At the last two it compares the weak view once
# more, where one expects the strong one.
OTHERS, AGAIN = (3.0, 5.0, 2.0, 6.0), 2


def mlkd(
    student_logits: Array,
    teacher_logits: Array,
    student_strong_logits: Array,
    teacher_strong_logits: Array,
    *,
    temperature: float = 4.0,
    where: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """Computes the loss of MLKD as released, from a weakly and a strongly augmented view of each image.

    With T in {temperature, 3, 5, 2, 6} it is

    f sum_T KD(weak) + sum_{temperature, 3, 5} KD(strong) + sum_{2, 6} KD(weak) + f_c sum_T CC + f sum_T BC.

    KD is `kd`. CC = |PᵀP - QᵀQ|^2 / classes compares classes and BC = |PPᵀ - QQᵀ|^2 / batch examples, by the softmaxes
    P and Q [batch, classes] of the weak view at T, without a factor T^2. f is the share of examples whose highest
    probability by the teacher is at most the median of the batch, and f_c that of classes whose probabilities add up to
    at most the median of the classes, both at temperature 1: in the released code they scale whole terms, so that no
    example is left out.

    The paper's objective is 0.9 times this plus 0.1 times the cross-entropies of both views.

    Args:
      student_logits: Student logits of the weak view, [..., classes].
      teacher_logits: Teacher logits of the weak view, [..., classes].
      student_strong_logits: Student logits of the strong view, [..., classes].
      teacher_strong_logits: Teacher logits of the strong view, [..., classes].
      temperature: The first temperature, above 0.
      where: Boolean array [...] of the examples that count in what is computed of the batch; None counts all. The batch
        runs over all leading axes.
      axis_name: Name of the mapped axis of the devices that share the batch, over all of which it runs then.

    Returns:
      The examples' terms of each example plus those of the batch [...], so that the mean over the examples that count
      is the loss; at least 0, and 0 where both sides are equal.

    Raises:
      ValueError: The shapes differ, or the temperature is out of range.

    References:
      Jin, Wang & Lin, 2023, "Multi-Level Logit Distillation", CVPR 2023.
    """
    check_range("temperature", temperature)
    student, teacher = as_logit_pair(student_logits, teacher_logits, "mlkd")
    strong = as_logit_pair(student_strong_logits, teacher_strong_logits, "mlkd")
    if strong[0].shape != student.shape:
        raise ValueError(
            f"logits of the weak view {list(student.shape)} and of the strong one {list(strong[0].shape)} must have "
            "one shape."
        )
    own, taught = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    counted = as_where(where, student).reshape(-1)
    if axis_name is not None:
        own, taught, counted = (lax.all_gather(x, axis_name, axis=0, tiled=True) for x in (own, taught, counted))
    few, few_classes = _shares(taught, counted)
    heats = jnp.stack([jnp.asarray(heat, student.dtype) for heat in (temperature, *OTHERS)])
    weak = _kd(student, teacher, heats)
    alike = few_classes * jnp.sum(_of_classes(own, taught, counted, heats)) + few * jnp.sum(
        _of_batch(own, taught, counted, heats)
    )
    again = jnp.sum(weak[-AGAIN:], axis=0)
    return few * jnp.sum(weak, axis=0) + again + jnp.sum(_kd(*strong, heats[:-AGAIN]), axis=0) + alike


def _kd(student: Array, teacher: Array, heats: Array) -> Array:
    """Returns KD [temperatures, ...] of both sides at each of the temperatures."""
    heats = heats.reshape(-1, *[1] * student.ndim)
    return heats[..., 0] ** 2 * kd(student / heats, teacher / heats, temperature=1.0)


def _shares(teacher: Array, counted: Array) -> tuple[Array, Array]:
    """Returns the shares [] of examples that count, and of classes, that are at most their medians."""
    probs = jnp.where(counted[:, None], jax.nn.softmax(jnp.where(counted[:, None], teacher, 0)), 0)
    count = jnp.maximum(jnp.sum(counted), 1)
    confidence = jnp.where(counted, jnp.max(probs, axis=-1), jnp.inf)
    ordered = jnp.sort(confidence)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    few = jnp.sum(jnp.where(counted, confidence <= median, False)) / count
    sums = jnp.sum(probs, axis=0)
    return few.astype(probs.dtype), jnp.mean(sums <= jnp.median(sums), dtype=probs.dtype)


def _of_classes(student: Array, teacher: Array, counted: Array, heats: Array) -> Array:
    """Returns CC [temperatures] of the examples that count."""
    q, p = _softmaxes(student, teacher, counted, heats)
    return jnp.sum((_gram(p.mT) - _gram(q.mT)) ** 2, axis=(1, 2)) / q.shape[-1]


def _of_batch(student: Array, teacher: Array, counted: Array, heats: Array) -> Array:
    """Returns BC [temperatures] of the examples that count."""
    q, p = _softmaxes(student, teacher, counted, heats)
    return jnp.sum((_gram(p) - _gram(q)) ** 2, axis=(1, 2)) / jnp.maximum(jnp.sum(counted), 1)


def _softmaxes(student: Array, teacher: Array, counted: Array, heats: Array) -> list[Array]:
    """Returns the softmaxes [temperatures, batch, classes] of both sides, 0 for an example that does not count."""
    seen = counted[:, None]
    return [
        jnp.where(seen, jax.nn.softmax(jnp.where(seen, x, 0) / heats[:, None, None]), 0) for x in (student, teacher)
    ]


def _gram(a: Array) -> Array:
    """Returns a aᵀ in full precision, which a matrix product does not have on a TPU by default."""
    return jnp.matmul(a, a.mT, precision="highest")
