"""Losses: pure functions of arrays, never reduced. The mean, the mask and the weight belong to the training step.

    from kdjax import losses
    losses.wttm(student_logits, teacher_logits, gamma=0.1).mean()

Every loss returns `[batch]`, computed in log space in the precision of its inputs, float32 at least. Labels are
integers `[batch]` or probabilities `[batch, classes]`. Hyper-parameters are keyword-only; their ranges are in RANGES.
"""

from kdjax.losses._checks import RANGES, check_range
from kdjax.losses.logits import kd, power_transform, renyi_entropy, student_renyi, ttm, wttm
from kdjax.losses.supervised import confidence_penalty, cross_entropy, softmax_mse, tolerant, top_score_difference

LOSSES = {
    "cross_entropy": cross_entropy,
    "softmax_mse": softmax_mse,
    "tolerant": tolerant,
    "top_score_difference": top_score_difference,
    "confidence_penalty": confidence_penalty,
    "kd": kd,
    "ttm": ttm,
    "wttm": wttm,
    "student_renyi": student_renyi,
}

__all__ = ["LOSSES", "RANGES", "check_range", "power_transform", "renyi_entropy", *LOSSES]
