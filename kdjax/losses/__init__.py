"""Losses: pure functions of arrays.

    from kdjax import losses
    losses.wttm(student_logits, teacher_logits, gamma=0.1).mean()

Losses on logits return one value an example [batch], computed in log space; the training step takes their masked,
weighted mean. Losses on feature maps, embeddings and memories return the scalar of their papers' code. All compute in
the precision of their inputs, float32 or wider. Labels are integers [batch]; a loss without a teacher also takes label
probabilities [batch, classes]. Hyper-parameters are keyword-only, and RANGES has the values that they may take.
"""

from collections.abc import Callable

from jax import Array

from kdjax.losses._checks import RANGES, check_range
from kdjax.losses._maps import adaptive_avg_pool
from kdjax.losses.contrastive import contrast_loss, contrast_scores, crd, first_normalizer
from kdjax.losses.decoupled import dist, dkd, nkd
from kdjax.losses.features import (
    activation_boundary,
    attention,
    factor_transfer,
    fsp,
    hint,
    nst,
    ofd,
    ofd_margins,
    paraphrase,
    review,
    vid,
)
from kdjax.losses.logits import (
    kd,
    power_transform,
    renyi_entropy,
    standardize_logits,
    student_renyi,
    ttm,
    wttm,
)
from kdjax.losses.relations import (
    correlation,
    itrd,
    itrd_correlation,
    itrd_mutual,
    pkt,
    rkd,
    similarity,
)
from kdjax.losses.self_supervised import auxiliary_cross_entropy, hsakd
from kdjax.losses.singular import svd
from kdjax.losses.supervised import confidence_penalty, cross_entropy, softmax_mse, tolerant, top_score_difference

# Name of a loss in configs -> its function.
LOSSES: dict[str, Callable[..., Array]] = {
    "cross_entropy": cross_entropy,
    "softmax_mse": softmax_mse,
    "tolerant": tolerant,
    "top_score_difference": top_score_difference,
    "confidence_penalty": confidence_penalty,
    "kd": kd,
    "ttm": ttm,
    "wttm": wttm,
    "student_renyi": student_renyi,
    "dkd": dkd,
    "dist": dist,
    "nkd": nkd,
    "hint": hint,
    "attention": attention,
    "nst": nst,
    "fsp": fsp,
    "factor_transfer": factor_transfer,
    "paraphrase": paraphrase,
    "activation_boundary": activation_boundary,
    "vid": vid,
    "svd": svd,
    "review": review,
    "ofd": ofd,
    "similarity": similarity,
    "correlation": correlation,
    "rkd": rkd,
    "pkt": pkt,
    "itrd": itrd,
    "crd": crd,
    "hsakd": hsakd,
    "auxiliary_cross_entropy": auxiliary_cross_entropy,
}

__all__ = [
    "LOSSES",
    "RANGES",
    "adaptive_avg_pool",
    "check_range",
    "contrast_loss",
    "contrast_scores",
    "first_normalizer",
    "itrd_correlation",
    "itrd_mutual",
    "ofd_margins",
    "power_transform",
    "renyi_entropy",
    "standardize_logits",
    *LOSSES,
]
