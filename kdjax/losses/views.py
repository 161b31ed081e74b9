"""SSKD: distillation of rotated images, and of the similarities between their embeddings.

Reference: Xu, Liu, Li & Loy, 2020, "Knowledge Distillation Meets Self-Supervision", https://arxiv.org/abs/2006.07114
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_float, as_targets, check_range
from kdjax.losses._maps import normalized
from kdjax.losses.logits import kd


def view_cross_entropy(views: Array, *, axis_name: str | None = None) -> Array:
    """Computes the cross-entropy of finding each rotated image's upright one in the batch, by cosine similarity.

    A teacher for SSKD trains the head that makes the embeddings with this loss, and nothing else.

    Args:
      views: Embeddings [batch, 4 rotations, dim] of the images, upright first.
      axis_name: Name of the mapped axis of the devices that share the batch; all images of the batch are candidates.

    Returns:
      Mean over the rotated images [] in nats, at least 0.

    Raises:
      ValueError: The views do not have three axes.

    References:
      Xu, Liu, Li & Loy, 2020, "Knowledge Distillation Meets Self-Supervision",
      https://arxiv.org/abs/2006.07114
    """
    similarities, truth = _similarities(_gathered(_checked("views", views), axis_name))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(similarities), truth[:, None], axis=1))


def sskd(
    student_rotated: Array,
    teacher_rotated: Array,
    student_views: Array,
    teacher_views: Array,
    labels: Array,
    *,
    transformed_weight: float = 2.7,
    contrast_weight: float = 10.0,
    temperature: float = 4.0,
    contrast_temperature: float = 0.5,
    keep_transformed: float = 1.0,
    keep_contrast: float = 0.75,
    axis_name: str | None = None,
) -> Array:
    """Computes what SSKD adds to KD: KD of the rotated images, and KD of their similarities to the upright ones.

    Both are means over the rotated images of T^2 KL(teacher || student) that are kept: all of those where the teacher
    is right, and of the others the share to whose truth the teacher gives the best rank. In the first term the truth is
    the class; in the second it is the image's own upright view, among all of the batch.

    Args:
      student_rotated: Student logits [batch, 4 rotations, classes], upright first.
      teacher_rotated: Teacher logits [batch, 4 rotations, classes].
      student_views: Student embeddings [batch, 4 rotations, any dim].
      teacher_views: Teacher embeddings [batch, 4 rotations, any dim].
      labels: Integer labels [batch], or label probabilities [batch, classes], whose largest one is then the truth.
      transformed_weight: Weight of the first term.
      contrast_weight: Weight of the second one.
      temperature: Temperature T of the logits, above 0.
      contrast_temperature: Temperature T of the cosine similarities, above 0.
      keep_transformed: Share of the teacher's wrong answers that the first term keeps, in [0, 1], rounded down.
      keep_contrast: The same of the second term.
      axis_name: Name of the mapped axis of the devices that share the batch, over all of which the ranks are taken.

    Returns:
      The weighted sum of both terms [] in nats, at least 0.

    Raises:
      ValueError: The shapes do not fit each other, or a hyper-parameter is out of range.

    References:
      Xu, Liu, Li & Loy, 2020, "Knowledge Distillation Meets Self-Supervision", https://arxiv.org/abs/2006.07114
    """
    check_range("temperature", temperature)
    check_range("contrast_temperature", contrast_temperature)
    check_range("keep_transformed", keep_transformed)
    check_range("keep_contrast", keep_contrast)
    logits = [
        _checked(name, x) for name, x in (("student_rotated", student_rotated), ("teacher_rotated", teacher_rotated))
    ]
    views = [_checked(name, x) for name, x in (("student_views", student_views), ("teacher_views", teacher_views))]
    if logits[0].shape != logits[1].shape or len({x.shape[:2] for x in (*logits, *views)}) > 1:
        shapes = ", ".join(str(list(x.shape)) for x in (*logits, *views))
        raise ValueError(
            "student_rotated and teacher_rotated must have one shape, and the views the same batch and rotations, not "
            f"{shapes}."
        )
    targets, valid = as_targets(labels, logits[1][:, 0])
    truth = jnp.where(valid, jnp.argmax(targets, axis=-1), 0)
    student, teacher, own, taught, truth = (_gathered(x, axis_name) for x in (*logits, *views, truth))
    classes = jnp.repeat(truth, student.shape[1] - 1)
    student, teacher = (x[:, 1:].reshape(-1, x.shape[-1]) for x in (student, teacher))
    transformed = _mean_kd(student, teacher, classes, temperature, keep_transformed)
    (own, _), (taught, places) = _similarities(own), _similarities(taught)
    contrast = _mean_kd(own, taught, places, contrast_temperature, keep_contrast)
    return transformed_weight * transformed + contrast_weight * contrast


def _checked(name: str, x: Array) -> Array:
    """Returns what a network makes of rotated images, in float32 or wider."""
    if x is None or jnp.ndim(x) != 3 or jnp.shape(x)[1] < 2:
        shape = "none" if x is None else list(jnp.shape(x))
        raise ValueError(f"{name} must be [batch, rotations, ...], not {shape}; see the network sskd.")
    return as_float(x)


def _gathered(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.all_gather(x, axis_name, axis=0, tiled=True)


def _similarities(views: Array) -> tuple[Array, Array]:
    """Returns the cosine similarities [rotated images, batch] to the upright images, and each one's own [rotated]."""
    unit = normalized(views)
    rotated = unit[:, 1:].reshape(-1, unit.shape[-1])
    truth = jnp.repeat(jnp.arange(unit.shape[0]), unit.shape[1] - 1)
    return jnp.matmul(rotated, unit[:, 0].T, precision="highest"), truth


def _mean_kd(student: Array, teacher: Array, truth: Array, temperature: float, keep: float) -> Array:
    """Returns the mean of T^2 KL over the rows that are kept; the teacher's logits decide which."""
    rank = jnp.sum(teacher > jnp.take_along_axis(teacher, truth[:, None], axis=1), axis=1)
    wrong = jnp.sum(rank > 0)
    kept = (rank.shape[0] - wrong) + jnp.floor(wrong * keep + 1e-4)
    place = jnp.argsort(jnp.argsort(rank, stable=True), stable=True)
    values = jnp.where(place < kept, kd(student, teacher, temperature=temperature), 0)
    return jnp.sum(values) / jnp.maximum(kept, 1)
