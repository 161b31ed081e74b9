"""Analysis: pure functions of arrays that measure what a network has learned and how networks differ.

    from kdjax import analysis
    totals = analysis.add(*(analysis.fidelity_sums(a, b, mask) for a, b, mask in batches))
    analysis.means(totals)["agreement"]

A `*_sums` function takes a batch and a mask and may be compiled. Its totals add over batches and devices (`add`,
`psum`, or `in_parts` for whole arrays) and are divided on the host in float64, by `means` or by a function that takes
the table. A function with `reference_code` in its name computes a quantity as a paper's own code does where that
differs from the paper's text; none of them is a default.
"""

from kdjax.analysis.affinity import augmentation_affinity, augmentation_diversity, overfit_gap, reference_code_affinity
from kdjax.analysis.attention import (
    class_activation,
    grad_cam,
    iou_sums,
    logit_gradients,
    normalize_maps,
    reference_code_iou_sums,
    regions,
    resize_maps,
)
from kdjax.analysis.calibration import (
    Bins,
    Reliability,
    adaptive_ece,
    brier_decomposition,
    calibration_error,
    calibration_scores,
    classwise_ece,
    classwise_sums,
    ece,
    fit_temperature,
    reliability,
    reliability_sums,
    score_sums,
)
from kdjax.analysis.fidelity import (
    ensemble,
    fidelity_scores,
    fidelity_sums,
    information_by_class,
    label_entropy,
    label_pairs,
    mutual_information,
    reference_code_kl_sums,
    reference_code_mutual_information_sums,
)
from kdjax.analysis.outputs import accuracy, distribution_entropy, entropy, softmax
from kdjax.analysis.posterior import (
    decomposition,
    from_counts,
    posterior_scores,
    posterior_sums,
    reference_code_distance,
    rounding_noise,
    sampling_noise,
    sampling_noise_estimate,
    squared_distance,
)
from kdjax.analysis.sums import add, in_parts, means, overall

__all__ = [
    "Bins",
    "Reliability",
    "accuracy",
    "adaptive_ece",
    "add",
    "augmentation_affinity",
    "augmentation_diversity",
    "brier_decomposition",
    "calibration_error",
    "calibration_scores",
    "class_activation",
    "classwise_ece",
    "classwise_sums",
    "decomposition",
    "distribution_entropy",
    "ece",
    "ensemble",
    "entropy",
    "fidelity_scores",
    "fidelity_sums",
    "fit_temperature",
    "from_counts",
    "grad_cam",
    "in_parts",
    "information_by_class",
    "iou_sums",
    "label_entropy",
    "label_pairs",
    "logit_gradients",
    "means",
    "mutual_information",
    "normalize_maps",
    "overall",
    "overfit_gap",
    "posterior_scores",
    "posterior_sums",
    "regions",
    "reference_code_affinity",
    "reference_code_distance",
    "reference_code_iou_sums",
    "reference_code_kl_sums",
    "reference_code_mutual_information_sums",
    "reliability",
    "reliability_sums",
    "resize_maps",
    "rounding_noise",
    "sampling_noise",
    "sampling_noise_estimate",
    "score_sums",
    "softmax",
    "squared_distance",
]
