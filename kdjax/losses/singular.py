"""KDSVD: compares feature maps by their leading singular vectors, with derivatives that are finite everywhere."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import add_up, check_range
from kdjax.losses._maps import as_pairs, check_same_shape, normalized


def svd(student_features: Sequence[Array], teacher_features: Sequence[Array], *, k: int = 1) -> Array:
    """Computes the KDSVD loss, the squared difference of RBF kernels between successive stages' singular vectors.

    A map [positions, channels] is reduced to its leading right singular vectors, k of the teacher's. For each of them,
    the student's vector with the largest |cosine| among its first k + 3 is taken, with the sign that makes the cosine
    positive. The teacher's own sign is the one that the linear-algebra library returns, as in the paper's code, so the
    value may differ between libraries.

    Args:
      student_features: Student maps [batch, height, width, channels], at least two, with the teacher's numbers of
        channels.
      teacher_features: Teacher maps [batch, height, width, channels], one for each student map.
      k: Number of the teacher's singular vectors, at least 1.

    Returns:
      Sum over successive stages i, j of the summed squared differences of the kernels exp(-(v_i - v_j)^2 / 8), divided
      by the batch size [], at least 0.

    Raises:
      ValueError: The lists do not pair up, there are fewer than two maps, or numbers of channels differ.

    References:
      Lee, Kim & Song, 2018, "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
      https://arxiv.org/abs/1807.06819
    """
    check_range("k", k)
    pairs = check_same_shape(as_pairs(student_features, teacher_features), (3,))
    if len(pairs) < 2:
        raise ValueError(f"svd needs at least two maps, not {len(pairs)}.")
    vectors = [_aligned(student, teacher, k) for student, teacher in pairs]
    terms = []
    for (student, teacher), (next_student, next_teacher) in zip(vectors, vectors[1:]):
        difference = _kernel(next_student, student) - jax.lax.stop_gradient(_kernel(next_teacher, teacher))
        terms.append(jnp.sum(difference**2))
    return add_up(terms) / pairs[0][0].shape[0]


def _kernel(a: Array, b: Array) -> Array:
    """Returns the RBF kernel exp(-(a - b)^2 / 8) of all pairs of channels, vector by vector."""
    return jnp.exp(-((a[:, :, None] - b[:, None]) ** 2) / 8)


def _aligned(student: Array, teacher: Array, k: int) -> tuple[Array, Array]:
    """Returns paired vectors [batch, channels, k] of both sides, scaled by the teacher's normalised singular values."""
    values, teacher_vectors = _leading(teacher, k)
    _, student_vectors = _leading(student, k + 3)
    cosine = jnp.einsum("bci,bcj->bij", student_vectors, teacher_vectors, precision="highest")
    closest = jax.nn.one_hot(jnp.argmax(jnp.abs(cosine), axis=1), cosine.shape[1], axis=1, dtype=bool)
    signs = jnp.where(closest, jnp.sign(cosine), 0.0)
    student_vectors = jnp.einsum("bci,bij->bcj", student_vectors, signs, precision="highest")
    scale = normalized(values)[:, None]
    return student_vectors * scale, teacher_vectors * scale


def _leading(x: Array, count: int) -> tuple[Array, Array]:
    """Returns the leading singular values [batch, count] and right singular vectors [batch, channels, count] of a map.

    The map [batch, height, width, channels] is read as a matrix of positions x channels for each example.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    count = min(count, *flat.shape[1:])
    values, vectors = _right_vectors(flat, count)
    return values, normalized(vectors, axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _right_vectors(x: Array, count: int) -> tuple[Array, Array]:
    """Returns the leading singular values [batch, count] and right vectors [batch, channels, count] of each matrix."""
    _, values, vectors = jnp.linalg.svd(x, full_matrices=False)
    return values[:, :count], jnp.swapaxes(vectors, 1, 2)[:, :, :count]


@_right_vectors.defjvp
def _right_vectors_jvp(count: int, primals: tuple[Array], tangents: tuple[Array]):
    """Differentiates by first-order perturbation theory of the eigenvectors of xᵀx.

    The rule divides by the gaps between squared singular values. Where two of them coincide, their vectors are not
    determined, and the rule of jnp.linalg.svd returns infinities; here their mixing counts as no change.
    """
    (x,), (dx,) = primals, tangents
    _, values, vectors = jnp.linalg.svd(x, full_matrices=False)
    vectors = jnp.swapaxes(vectors, 1, 2)
    chosen, squares = vectors[:, :, :count], values**2
    einsum = partial(jnp.einsum, precision="highest")
    # The change of xᵀx applied to the chosen vectors, split into the span of all singular vectors and the rest.
    change = einsum("bpc,bpd,bdi->bci", dx, x, chosen) + einsum("bpc,bpd,bdi->bci", x, dx, chosen)
    inside = einsum("bcj,bci->bji", vectors, change)
    gaps = squares[:, None, :count] - squares[:, :, None]
    tiny = jnp.finfo(x.dtype).eps * jnp.max(squares, axis=1)[:, None, None]
    mixed = jnp.where(jnp.abs(gaps) > tiny, inside / jnp.where(jnp.abs(gaps) > tiny, gaps, 1.0), 0.0)
    outside = change - einsum("bcj,bji->bci", vectors, inside)
    # Outside the span the other eigenvalue is 0, so the gap is the squared singular value itself.
    large = squares[:, None, :count] > tiny
    leaving = jnp.where(large, outside / jnp.where(large, squares[:, None, :count], 1.0), 0.0)
    d_vectors = einsum("bcj,bji->bci", vectors, mixed) + leaving
    d_squares = jnp.einsum("bii->bi", inside[:, :count])
    positive = values[:, :count] > 0
    d_values = jnp.where(positive, d_squares / (2 * jnp.where(positive, values[:, :count], 1.0)), 0.0)
    return (values[:, :count], chosen), (d_values, d_vectors)
