"""Affinity, diversity and the over-fitting gap: their formulas, and the arguments that they refuse."""

import numpy as np
import pytest

from kdjax import analysis


@pytest.mark.parametrize("ratio", [analysis.augmentation_affinity, analysis.reference_code_affinity])
def test_affinity_is_a_ratio_of_accuracies(ratio):
    assert ratio(0.6, 0.8) == pytest.approx(0.75)
    assert ratio(0.8, 0.8) == 1 and isinstance(ratio(0.8, 0.8), float)
    np.testing.assert_allclose(ratio([0.6, 0.9], [0.8, 0.6]), [0.75, 1.5])


def test_diversity_is_a_ratio_of_losses():
    assert analysis.augmentation_diversity(1.2, 0.4) == pytest.approx(3)


def test_the_gap_is_what_training_has_over_validation():
    assert analysis.overfit_gap(0.99, 0.75) == pytest.approx(0.24)
    assert analysis.overfit_gap(0.5, 0.75) == -0.25


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: analysis.augmentation_affinity(60, 80), r"accuracy_augmented must be a fraction in \[0, 1\], not 60"),
        (lambda: analysis.augmentation_affinity(0.6, 0), "accuracy_clean must be above 0, not 0"),
        (lambda: analysis.reference_code_affinity(0.6, 0), "accuracy_base must be above 0"),
        (lambda: analysis.overfit_gap(float("nan"), 0.5), "train_accuracy must be a fraction"),
        (lambda: analysis.augmentation_diversity(-1.0, 0.5), "loss_augmented must be finite and at least 0, not -1"),
        (lambda: analysis.augmentation_diversity(1.0, 0.0), "loss_clean must be above 0"),
        (lambda: analysis.augmentation_affinity([0.5, 0.6], 0.7), r"accuracy_augmented \[2\] and accuracy_clean \[\]"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
