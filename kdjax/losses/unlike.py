"""OFA-KD: distillation between networks of unlike families, whose maps cannot be compared.

Reference: Hao et al., 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", https://arxiv.org/abs/2310.19444
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.nn import log_softmax, softmax

from kdjax.losses._checks import add_up, as_logit_pair, as_targets, check_range, expectation, sound_rows


def ofa(
    student_logits: Array,
    stage_logits: Sequence[Array],
    teacher_logits: Array,
    labels: Array,
    *,
    exponent: float = 1.0,
    stage_weight: float = 1.0,
) -> Array:
    """Computes the OFA-KD loss of a student's logits and of those that heads make of its stages.

    With y one-hot, p the teacher's softmax and q the student's, a term is -sum_k ((p_k + y_k)^e - y_k) log q_k. An
    exponent e of 1 makes it the cross-entropy with p; a larger one weighs the label by how sure the teacher is of it.

    Args:
      student_logits: Student logits [..., classes].
      stage_logits: Logits [..., classes] of each stage's head; () for none.
      teacher_logits: Teacher logits [..., classes].
      labels: Integer labels [...] or label probabilities [..., classes].
      exponent: Exponent e, above 0; the paper has values of 1 and above.
      stage_weight: Weight of the sum of the stages' terms.

    Returns:
      Loss of each example [...] in nats, at least 0 for exponents of at least 1.

    Raises:
      ValueError: The shapes do not fit each other, or the exponent is out of range.

    References:
      Hao et al., 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
      https://arxiv.org/abs/2310.19444
    """
    check_range("exponent", exponent)
    (student, teacher), good = sound_rows(*as_logit_pair(student_logits, teacher_logits, "ofa"))
    targets, _ = as_targets(labels, teacher)
    share = (softmax(teacher) + targets) ** exponent - targets
    value = jnp.where(good, -expectation(share, log_softmax(student)), jnp.nan)
    stages = [as_logit_pair(stage, teacher, "ofa")[0] for stage in stage_logits]
    if not stages:
        return value
    return value + stage_weight * add_up([-expectation(share, log_softmax(stage)) for stage in stages])
