"""Quantities that `config.diagnostics` logs beside the losses: a visible table, one line a quantity."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax import losses
from kdjax.types import Array


class Diagnostic(NamedTuple):
    """A logged quantity.

    Attributes:
      function: `(student_logits, teacher_logits, gamma) -> [batch]`; logits are [batch, classes], gamma is the power of
        the transformed teacher.
      of_teacher: Whether it is computed for each teacher, and logged as TEACHER/NAME; otherwise teacher_logits is None.
    """

    function: Callable[[Array, Array, Array], Array]
    of_teacher: bool = True


def student_entropy(student_logits: Array, teacher_logits: Array, gamma: Array) -> Array:
    """Returns the Shannon entropy of the student's outputs, in nats."""
    del teacher_logits, gamma
    return losses.renyi_entropy(student_logits, 1.0)


def teacher_entropy(student_logits: Array, teacher_logits: Array, gamma: Array) -> Array:
    """Returns the Shannon entropy of a teacher's outputs, in nats."""
    del student_logits, gamma
    return losses.renyi_entropy(teacher_logits, 1.0)


def kl_to_transformed(student_logits: Array, teacher_logits: Array, gamma: Array) -> Array:
    """Returns the Kullback-Leibler divergence from the transformed teacher to the student, in nats."""
    return losses.ttm(student_logits, teacher_logits, gamma=gamma)


def wttm_weight(student_logits: Array, teacher_logits: Array, gamma: Array) -> Array:
    """Returns the weight that WTTM gives each example, U = sum_k p_k^gamma = exp((1 - gamma) H_gamma(p))."""
    del student_logits
    return jnp.exp((1 - gamma) * losses.renyi_entropy(teacher_logits, gamma))


DIAGNOSTICS = {
    "student_entropy": Diagnostic(student_entropy, of_teacher=False),
    "teacher_entropy": Diagnostic(teacher_entropy),
    "kl_to_transformed": Diagnostic(kl_to_transformed),
    "wttm_weight": Diagnostic(wttm_weight),
}


def diagnose(
    student_logits: Array, teacher_logits: Mapping[str, Array], config_losses: Mapping[str, Mapping[str, Any]]
) -> dict[str, Array]:
    """Returns every row of DIAGNOSTICS for a batch.

    Args:
      student_logits: [batch, classes].
      teacher_logits: Teacher -> [batch, classes].
      config_losses: `config.losses`, which has the power of the transformed teacher: `gamma` of the first term that has
        one, else 1 / `temperature` of the first term that has that, else 1.

    Returns:
      Name -> [batch]; names of quantities of a teacher begin with 'TEACHER/'.
    """
    gammas = [term["gamma"] for term in config_losses.values() if "gamma" in term]
    gammas += [1 / term["temperature"] for term in config_losses.values() if "temperature" in term]
    gamma = gammas[0] if gammas else 1.0
    of_student = {name: row for name, row in DIAGNOSTICS.items() if not row.of_teacher}
    of_teacher = {name: row for name, row in DIAGNOSTICS.items() if row.of_teacher}
    found = {name: row.function(student_logits, None, gamma) for name, row in of_student.items()}
    for teacher, logits in teacher_logits.items():
        found |= {f"{teacher}/{name}": row.function(student_logits, logits, gamma) for name, row in of_teacher.items()}
    return found
