"""Losses: pure functions of arrays.

    from kdjax import losses
    losses.wttm(student_logits, teacher_logits, gamma=0.1).mean()

Losses on logits take logits [..., classes] with any leading axes, such as [batch, classes] or
[batch, time, vocabulary], and return one value an example [...], computed in log space. They reduce nothing: the caller
takes the mean, such as `jnp.mean(loss, where=mask)`. A quantity of the whole batch runs over all leading axes together,
and `where=` [...] says which examples count in it. Losses on feature maps, embeddings and memories return the scalar of
their papers' code. All compute in the precision of their inputs, float32 or wider. Labels are integers [...]; a loss
without a teacher also takes label probabilities [..., classes]. Where a teacher's output is known in part, the
divergences, kd, ttm and wttm take its top classes (`kdjax.types.TopK`), and forward_kl and cross_entropy classes that
were drawn from it (`sampled_teacher`); `linear_divergence` never holds the logits of all rows. Hyper-parameters
are keyword-only, and RANGES has the values that they may take.
"""

from collections.abc import Callable

from jax import Array

from kdjax.losses._checks import RANGES, check_combination, check_range
from kdjax.losses._maps import adaptive_avg_pool
from kdjax.losses.classifiers import catkd, sdd, simkd, srrl
from kdjax.losses.contrastive import contrast_loss, contrast_scores, crd, first_normalizer
from kdjax.losses.corrected import corrected_kd
from kdjax.losses.curriculum import ctkd, reversal_strength, reversed_gradient
from kdjax.losses.decoupled import dist, dkd, nkd
from kdjax.losses.divergences import (
    DIVERGENCES,
    alpha_beta,
    divergence,
    forward_kl,
    jeffreys,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from kdjax.losses.features import (
    activation_boundary,
    attention,
    factor_transfer,
    fsp,
    hint,
    ickd,
    nst,
    ofd,
    ofd_margins,
    paraphrase,
    review,
    vid,
)
from kdjax.losses.generalized import class_gkl, gkl
from kdjax.losses.linear import linear_divergence
from kdjax.losses.logits import (
    kd,
    power_transform,
    renyi_entropy,
    standardize_logits,
    student_renyi,
    ttm,
    wttm,
)
from kdjax.losses.multilevel import mlkd
from kdjax.losses.norms import nd
from kdjax.losses.perturbed import tekap
from kdjax.losses.refined import normkd, rld, wsl
from kdjax.losses.relations import (
    correlation,
    itrd,
    itrd_correlation,
    itrd_mutual,
    pkt,
    rkd,
    similarity,
)
from kdjax.losses.sampled import sampled_teacher
from kdjax.losses.self_supervised import auxiliary_cross_entropy, hsakd
from kdjax.losses.singular import svd
from kdjax.losses.supervised import confidence_penalty, cross_entropy, softmax_mse, tolerant, top_score_difference
from kdjax.losses.teaching import (
    centroid_divergence,
    centroid_sums,
    class_centroids,
    consistency,
    gce,
    lipschitz,
    mcmi,
    move_centroids,
    normalize_centroids,
    remembered_share,
    student_branches,
)
from kdjax.losses.transformers import vitkd
from kdjax.losses.transport import label_term, relation_costs, wkdl
from kdjax.losses.unlike import ofa
from kdjax.losses.views import sskd, view_cross_entropy

# Name of a loss in configs -> its function.
LOSSES: dict[str, Callable[..., Array]] = {
    "cross_entropy": cross_entropy,
    "softmax_mse": softmax_mse,
    "tolerant": tolerant,
    "top_score_difference": top_score_difference,
    "confidence_penalty": confidence_penalty,
    "gce": gce,
    "mcmi": mcmi,
    "consistency": consistency,
    "lipschitz": lipschitz,
    "student_branches": student_branches,
    "kd": kd,
    "corrected_kd": corrected_kd,
    "ttm": ttm,
    "wttm": wttm,
    "student_renyi": student_renyi,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "alpha_beta": alpha_beta,
    "dkd": dkd,
    "dist": dist,
    "nkd": nkd,
    "wsl": wsl,
    "normkd": normkd,
    "rld": rld,
    "gkl": gkl,
    "class_gkl": class_gkl,
    "wkdl": wkdl,
    "label_term": label_term,
    "mlkd": mlkd,
    "tekap": tekap,
    "ctkd": ctkd,
    "ofa": ofa,
    "hint": hint,
    "ickd": ickd,
    "srrl": srrl,
    "simkd": simkd,
    "sdd": sdd,
    "catkd": catkd,
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
    "nd": nd,
    "vitkd": vitkd,
    "similarity": similarity,
    "correlation": correlation,
    "rkd": rkd,
    "pkt": pkt,
    "itrd": itrd,
    "crd": crd,
    "sskd": sskd,
    "view_cross_entropy": view_cross_entropy,
    "hsakd": hsakd,
    "auxiliary_cross_entropy": auxiliary_cross_entropy,
}

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "RANGES",
    "adaptive_avg_pool",
    "centroid_divergence",
    "centroid_sums",
    "check_combination",
    "check_range",
    "class_centroids",
    "contrast_loss",
    "contrast_scores",
    "divergence",
    "first_normalizer",
    "itrd_correlation",
    "itrd_mutual",
    "linear_divergence",
    "move_centroids",
    "normalize_centroids",
    "ofd_margins",
    "power_transform",
    "relation_costs",
    "remembered_share",
    "renyi_entropy",
    "sampled_teacher",
    "reversal_strength",
    "reversed_gradient",
    "standardize_logits",
    *LOSSES,
]
