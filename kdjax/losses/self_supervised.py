"""HSAKD: distillation through auxiliary classifiers that predict an image's class and rotation together.

Reference: Yang, An, Cai & Xu, 2021, "Hierarchical Self-supervised Augmented Knowledge Distillation",
https://arxiv.org/abs/2107.13715
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from kdjax.losses._checks import add_up, as_float, check_range
from kdjax.losses.logits import kd
from kdjax.losses.supervised import cross_entropy


def auxiliary_cross_entropy(auxiliary: Sequence[Array], labels: Array) -> Array:
    """Computes the cross-entropy of every auxiliary classifier with the joint label 4 y + j of class y and rotation j.

    A teacher for HSAKD is trained with this loss, added to the cross-entropy of its own logits.

    Args:
      auxiliary: Logits [batch, 4 rotations, 4 classes] of each branch. Entry 4 k + j stands for class k and rotation j.
      labels: Integer labels y [batch] in [0, classes).

    Returns:
      Loss of each example [batch] in nats, at least 0: the sum over branches of the means over rotations.

    Raises:
      ValueError: There is no branch, or a branch does not have three axes.

    References:
      Yang, An, Cai & Xu, 2021, "Hierarchical Self-supervised Augmented Knowledge Distillation", eq. 5,
      https://arxiv.org/abs/2107.13715
    """
    terms = []
    for logits in _branches(auxiliary, "auxiliary"):
        rotations = logits.shape[1]
        joint = jnp.asarray(labels)[:, None] * rotations + jnp.arange(rotations)
        terms.append(jnp.mean(cross_entropy(logits, joint), axis=1))
    return add_up(terms)


def hsakd(student_auxiliary: Sequence[Array], teacher_auxiliary: Sequence[Array], *, temperature: float = 3.0) -> Array:
    """Computes the HSAKD loss, T^2 KL(p_T || q_T) of every branch and of the network's own logits on rotated images.

    The cross-entropy on the images as they are, of weight 1 in the paper, is a loss of its own here.

    Args:
      student_auxiliary: Student logits [batch, 4 rotations, 4 classes] of each branch, and last the network's own
        logits [batch, 4 rotations, classes].
      teacher_auxiliary: Teacher logits in the same order and of the same shapes.
      temperature: Temperature T of both sides, above 0.

    Returns:
      Loss of each example [batch] in nats, at least 0: the sum over branches of the means over rotations.

    Raises:
      ValueError: The branches do not pair up, or the temperature is out of range.

    References:
      Yang, An, Cai & Xu, 2021, "Hierarchical Self-supervised Augmented Knowledge Distillation", eqs. 9 and 10,
      https://arxiv.org/abs/2107.13715
    """
    check_range("temperature", temperature)
    students = _branches(student_auxiliary, "student_auxiliary")
    teachers = _branches(teacher_auxiliary, "teacher_auxiliary")
    shapes = [[list(branch.shape) for branch in side] for side in (students, teachers)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"student_auxiliary {shapes[0]} and teacher_auxiliary {shapes[1]} must have one shape each.")
    pairs = zip(students, teachers, strict=True)
    return add_up([jnp.mean(kd(*pair, temperature=temperature), axis=1) for pair in pairs])


def _branches(branches: Sequence[Array], name: str) -> list[Array]:
    """Returns the logits of at least one branch, each [batch, rotations, classes], in float32 or wider."""
    checked = [as_float(branch) for branch in branches]
    if not checked or any(branch.ndim != 3 for branch in checked):
        shapes = [list(branch.shape) for branch in checked]
        raise ValueError(f"{name} must be branches of [batch, rotations, classes], not {shapes}; see the network aux.")
    return checked
