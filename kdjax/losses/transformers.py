"""ViTKD: a loss on the maps of two vision transformers.

Reference: Yang, Li, Zeng, Li, Yuan & Li, 2022, "ViTKD: Practical Guidelines for ViT feature knowledge distillation",
https://arxiv.org/abs/2209.02432
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import add_up, as_float


def vitkd(
    student_tokens: Sequence[Array],
    teacher_tokens: Sequence[Array],
    generated_map: Array,
    teacher_map: Array,
    masked: Array,
    *,
    shallow_weight: float = 3e-5,
    deep_weight: float = 3e-6,
) -> Array:
    """Computes ViTKD: shallow blocks are imitated, the last one is generated from a part of its patches.

    Args:
      student_tokens: Patches of the student's first blocks, linearly mapped to the teacher's width, each [batch,
        patches, dim].
      teacher_tokens: Patches of the teacher's first blocks, each [batch, patches, dim].
      generated_map: What is generated of the teacher's last map, [batch, height, width, dim].
      teacher_map: The teacher's last map, [batch, height, width, dim].
      masked: Boolean array [batch, height, width] of the patches that the generation has not seen; only these count.
      shallow_weight: Weight of the squared differences of the first blocks, summed over blocks, patches and channels.
      deep_weight: Weight of the squared differences of the last map, summed over masked patches and channels and
        divided by the share of patches that are masked.

    Returns:
      Loss of each example [batch], at least 0.

    Raises:
      ValueError: The shapes do not fit each other.

    References:
      Yang, Li, Zeng, Li, Yuan & Li, 2022, "ViTKD: Practical Guidelines for ViT feature knowledge distillation",
      https://arxiv.org/abs/2209.02432
    """
    pairs = [(as_float(s), as_float(t)) for s, t in zip(student_tokens, teacher_tokens, strict=False)]
    deep = as_float(generated_map), as_float(teacher_map)
    masked = jnp.asarray(masked)
    fits = all(s.shape == t.shape and s.ndim == 3 for s, t in pairs) and deep[0].shape == deep[1].shape
    if not pairs or len(student_tokens) != len(teacher_tokens) or not fits or masked.shape != deep[0].shape[:3]:
        shapes = [[list(x.shape) for x in side] for side in (student_tokens, teacher_tokens)]
        raise ValueError(
            f"student_tokens {shapes[0]} and teacher_tokens {shapes[1]} must have one shape each, and generated_map "
            f"{list(deep[0].shape)} and teacher_map {list(deep[1].shape)} one [batch, height, width, dim], of which "
            f"masked {list(masked.shape)} has the first three."
        )
    shallow = add_up([jnp.sum((s - t) ** 2, axis=(1, 2)) for s, t in pairs])
    squares = jnp.where(masked, jnp.sum((deep[0] - deep[1]) ** 2, axis=-1), 0)
    share = jnp.mean(masked, axis=(1, 2), dtype=squares.dtype)
    return shallow_weight * shallow + deep_weight * jnp.sum(squares, axis=(1, 2)) / jnp.where(share > 0, share, 1)
