"""HSAKD: distillation of what auxiliary classifiers tell of class and rotation together (Yang et al., IJCAI 2021)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import as_float, check_range
from kdjax.losses.logits import kd
from kdjax.losses.supervised import cross_entropy


def auxiliary_cross_entropy(auxiliary: Sequence[Array], labels: Array) -> Array:
    """Cross-entropy of every auxiliary classifier with class and rotation, labels 4 y + j (Yang et al., 2021, eq. 5).

    What a teacher for HSAKD is trained with, beside the cross-entropy of its own logits.

    Args:
      auxiliary: [batch, 4, 4 classes] of each branch, class-major.
      labels: [batch] integers.

    Returns:
      [batch] in nats, summed over branches, mean over rotations.

    Raises:
      ValueError: no branch, or one of another shape.
    """
    total = 0.0
    for logits in _branches(auxiliary, "auxiliary"):
        turns = logits.shape[1]
        joint = jnp.asarray(labels)[:, None] * turns + jnp.arange(turns)
        values = cross_entropy(logits.reshape(-1, logits.shape[-1]), joint.reshape(-1))
        total += jnp.mean(values.reshape(-1, turns), axis=1)
    return total


def hsakd(student_auxiliary: Sequence[Array], teacher_auxiliary: Sequence[Array], *, temperature: float = 3.0) -> Array:
    """HSAKD, T^2 KL(p_T || q_T) of each branch and of the networks' own logits, on rotated images (eqs. 9 and 10).

    Args:
      student_auxiliary: [batch, 4, 4 classes] of each branch, and last [batch, 4, classes] of the network itself.
      teacher_auxiliary: likewise, as many.
      temperature: T, above 0, of both sides.

    Returns:
      [batch] in nats, summed over branches, mean over rotations. Cross-entropy on the images as they are is a term of
      its own, of weight 1.

    Raises:
      ValueError: branches that do not pair, or the temperature is out of range.
    """
    check_range("temperature", temperature)
    ours, theirs = _branches(student_auxiliary, "student_auxiliary"), _branches(teacher_auxiliary, "teacher_auxiliary")
    shapes = [[list(branch.shape) for branch in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"student_auxiliary {shapes[0]} and teacher_auxiliary {shapes[1]} must have one shape each.")
    total = 0.0
    for student, teacher in zip(ours, theirs, strict=True):
        values = kd(*(x.reshape(-1, x.shape[-1]) for x in (student, teacher)), temperature=temperature)
        total += jnp.mean(values.reshape(student.shape[:2]), axis=1)
    return total


def _branches(branches: Sequence[Array], name: str) -> list[Array]:
    branches = [as_float(branch) for branch in branches]
    if not branches or any(branch.ndim != 3 for branch in branches):
        shapes = [list(branch.shape) for branch in branches]
        raise ValueError(f"{name} must be branches of [batch, rotations, classes], not {shapes}; see resnet20_aux.")
    return branches
