"""Divergences of large vocabularies, computed from hidden states by chunks of rows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import check_range
from kdjax.losses.divergences import divergence
from kdjax.types import TopK


def linear_divergence(
    hidden: Array,
    kernel: Array,
    teacher: tuple[Array, Array] | TopK,
    *,
    kind: str = "forward_kl",
    chunk: int = 1024,
    where: Array | None = None,
    **options: Any,
) -> Array:
    """Computes `divergence` of the logits hidden @ kernel, without ever holding the logits of all rows.

    Logits and divergence are computed for `chunk` rows at a time, and once more for the gradient. Values and gradients,
    also the teacher's, are those of the dense form. The products have the precision of jax's default, and are summed in
    float32 or wider.

    Args:
      hidden: Student's hidden states [..., width].
      kernel: Student's last matrix [width, classes].
      teacher: The teacher's (hidden states [..., its width], matrix [its width, classes]); or its TopK of [..., k].
      kind: A key of DIVERGENCES.
      chunk: Number of rows whose logits are held at once, at least 1; the last chunk may be smaller.
      where: Boolean array [...] of the rows that count; see `forward_kl`.
      options: Further keyword arguments of the divergence, such as temperature and mode; each is the same for all rows.

    Returns:
      Divergence of each row [...], at least 0.

    Raises:
      ValueError: The shapes do not fit, there is no such kind, or an option is out of range.
    """
    check_range("chunk", chunk)
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    _check_product(hidden, kernel, "")
    leading = hidden.shape[:-1]
    by_row: tuple[Any, ...] = (hidden,)
    teacher_kernel = None
    if isinstance(teacher, TopK):
        by_row += (TopK(jnp.asarray(teacher.indices), jnp.asarray(teacher.log_probs)),)
    else:
        teacher_hidden, teacher_kernel = (jnp.asarray(part) for part in teacher)
        _check_product(teacher_hidden, teacher_kernel, "the teacher's ")
        by_row += (teacher_hidden,)
    if where is not None:
        by_row += (jnp.asarray(where, bool),)
    for part in jax.tree.leaves(by_row):
        if part.shape[: len(leading)] != leading:
            raise ValueError(f"hidden {list(hidden.shape)} and an array {list(part.shape)} must have the same rows.")

    def of_row(row: tuple[Any, ...]) -> Array:
        row_hidden, taught, *counted = row
        taught = taught if teacher_kernel is None else _product(taught, teacher_kernel)
        counts = counted[0] if counted else None
        return divergence(_product(row_hidden, kernel), taught, kind=kind, where=counts, **options)

    size = math.prod(leading)
    rows = jax.tree.map(lambda part: part.reshape(size, *part.shape[len(leading) :]), by_row)
    # What a chunk has computed is not kept for the gradient.
    return lax.map(jax.checkpoint(of_row, prevent_cse=False), rows, batch_size=chunk).reshape(leading)


def _product(hidden: Array, kernel: Array) -> Array:
    kind = jnp.promote_types(jnp.result_type(hidden, kernel), jnp.float32)
    return jnp.matmul(hidden, kernel, preferred_element_type=kind)


def _check_product(hidden: Array, kernel: Array, whose: str) -> None:
    if hidden.ndim == 0 or kernel.ndim != 2 or hidden.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{whose}hidden {list(hidden.shape)} and kernel {list(kernel.shape)} must be [..., width] and "
            "[width, classes]."
        )
