"""KDSVD: a stage's map by its leading singular vectors, with derivatives that are finite where vectors coincide."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import check_range
from kdjax.losses._maps import as_pairs, normalized, same_shape


def svd(student_features: Sequence[Array], teacher_features: Sequence[Array], *, k: int = 1) -> Array:
    """KDSVD: differences of RBF kernels between the singular vectors of successive stages (Lee, Kim & Song, 2018).

    A stage is its leading right singular vectors over channels: k of the teacher's, the closest of k + 3 of the
    student's (by |cos|, with its sign). The sign of a vector is the library's, as in the paper's code.

    Args:
      student_features: two maps at least, with the teacher's channels.
      teacher_features: likewise.
      k: vectors, at least 1.

    Returns:
      [] sum over successive stages of the summed squared differences of exp(-(v_i - v_j)^2 / 8), by the batch.

    Raises:
      ValueError: lists that do not pair, fewer than two maps, or other channels.
    """
    check_range("k", k)
    pairs = same_shape(as_pairs(student_features, teacher_features), (3,))
    if len(pairs) < 2:
        raise ValueError(f"svd needs two maps at least, not {len(pairs)}.")
    vectors = [_aligned(student, teacher, k) for student, teacher in pairs]
    total = 0.0
    for (student, teacher), (next_student, next_teacher) in zip(vectors, vectors[1:]):
        difference = _kernel(next_student, student) - jax.lax.stop_gradient(_kernel(next_teacher, teacher))
        total += jnp.sum(difference**2)
    return total / pairs[0][0].shape[0]


def _kernel(a: Array, b: Array) -> Array:
    return jnp.exp(-((a[:, :, None] - b[:, None]) ** 2) / 8)


def _aligned(student: Array, teacher: Array, k: int) -> tuple[Array, Array]:
    """[batch, channels, k] of both sides, times the teacher's normalised singular values."""
    values, theirs = _leading(teacher, k)
    _, ours = _leading(student, k + 3)
    cosine = jnp.einsum("bci,bcj->bij", ours, theirs, precision="highest")
    closest = jax.nn.one_hot(jnp.argmax(jnp.abs(cosine), axis=1), cosine.shape[1], axis=1, dtype=bool)
    ours = jnp.einsum("bci,bij->bcj", ours, jnp.where(closest, jnp.sign(cosine), 0.0), precision="highest")
    scale = normalized(values)[:, None]
    return ours * scale, theirs * scale


def _leading(x: Array, count: int) -> tuple[Array, Array]:
    """Singular values [batch, count] and right vectors [batch, channels, count] of the map as positions x channels."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    count = min(count, *flat.shape[1:])
    values, vectors = _right_vectors(flat, count)
    return values, normalized(vectors, axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _right_vectors(x: Array, count: int) -> tuple[Array, Array]:
    _, values, vectors = jnp.linalg.svd(x, full_matrices=False)
    return values[:, :count], jnp.swapaxes(vectors, 1, 2)[:, :, :count]


@_right_vectors.defjvp
def _right_vectors_jvp(count: int, primals: tuple, tangents: tuple):
    """First-order perturbation of the eigenvectors of xᵀx; a coincidence of values counts as no motion."""
    (x,), (dx,) = primals, tangents
    _, values, vectors = jnp.linalg.svd(x, full_matrices=False)
    vectors = jnp.swapaxes(vectors, 1, 2)
    chosen, squares = vectors[:, :, :count], values**2
    einsum = partial(jnp.einsum, precision="highest")
    change = einsum("bpc,bpd,bdi->bci", dx, x, chosen) + einsum("bpc,bpd,bdi->bci", x, dx, chosen)
    inside = einsum("bcj,bci->bji", vectors, change)
    gaps = squares[:, None, :count] - squares[:, :, None]
    tiny = jnp.finfo(x.dtype).eps * jnp.max(squares, axis=1)[:, None, None]
    mixed = jnp.where(jnp.abs(gaps) > tiny, inside / jnp.where(jnp.abs(gaps) > tiny, gaps, 1.0), 0.0)
    outside = change - einsum("bcj,bji->bci", vectors, inside)
    large = squares[:, None, :count] > tiny
    leaving = jnp.where(large, outside / jnp.where(large, squares[:, None, :count], 1.0), 0.0)
    moved = einsum("bcj,bji->bci", vectors, mixed) + leaving
    own = jnp.einsum("bii->bi", inside[:, :count])
    positive = values[:, :count] > 0
    d_values = jnp.where(positive, own / (2 * jnp.where(positive, values[:, :count], 1.0)), 0.0)
    return (values[:, :count], chosen), (d_values, moved)
