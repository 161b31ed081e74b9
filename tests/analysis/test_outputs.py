"""Accuracy, probabilities and entropies against their definitions and limits."""

import numpy as np
import pytest
from scipy.special import softmax as reference

from kdjax import analysis


def logits(scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)


def test_accuracy_is_the_share_of_largest_scores_at_the_label():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert analysis.accuracy(scores, np.array([1, 0, 0, 0])) == 0.75


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1))])
def test_accuracy_refuses_other_shapes(shapes):
    scores, labels = (np.zeros(shape, int) for shape in shapes)
    with pytest.raises(ValueError, match="accuracy needs"):
        analysis.accuracy(scores, labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_probabilities_are_scipys_and_do_not_change_under_a_shift(scale):
    x = logits(scale)
    np.testing.assert_allclose(analysis.softmax(x), reference(x.astype(np.float64), axis=1), atol=1e-14)
    np.testing.assert_allclose(analysis.softmax(x.astype(np.float64) + 100), analysis.softmax(x), atol=1e-12)


def test_both_entropies_are_one():
    x = logits()
    np.testing.assert_allclose(analysis.entropy(x), analysis.distribution_entropy(analysis.softmax(x)), atol=1e-14)


def test_entropies_of_certainty_and_of_none():
    assert analysis.distribution_entropy(np.eye(3)).tolist() == [0, 0, 0]
    np.testing.assert_allclose(analysis.entropy(np.zeros((2, 5))), np.log(5))
    np.testing.assert_allclose(analysis.entropy(1e4 * np.eye(3)), 0, atol=1e-300)
