"""Properties of the losses that need no teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest

from kdjax import losses

CLASSES = 8
LOGITS = 2 * np.random.default_rng(0).normal(size=(5, CLASSES))
LABELS = np.arange(5)
ONE_HOT = np.where(np.arange(CLASSES) == 3, 200.0, 0.0)[None]
UNIFORM = np.full((1, CLASSES), 2.5)


@pytest.mark.parametrize("name", ["cross_entropy", "softmax_mse"])
def test_minimum_over_outputs_is_the_target(name):
    target = numpy_losses.softmax(LOGITS)
    gradient = jax.grad(lambda z: losses.LOSSES[name](z, target).sum())(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "softmax_mse"])
def test_expectation_over_labels_is_distance_to_the_posterior(name):
    """E_y |q - e_y|^2 = |q - p*|^2 + 1 - |p*|^2 and E_y CE = KL(p* || q) + H(p*) (Hamidi et al., 2024)."""
    with jax.enable_x64(True):
        q, posterior = numpy_losses.softmax(LOGITS), np.random.default_rng(1).dirichlet(np.ones(CLASSES), size=5)
        by_label = [losses.LOSSES[name](LOGITS, np.full(5, label)) for label in range(CLASSES)]
        expected = np.sum(posterior.T * np.stack(by_label), axis=0)
        if name == "softmax_mse":
            distance = np.sum((q - posterior) ** 2, axis=1) + 1 - np.sum(posterior**2, axis=1)
        else:
            distance = numpy_losses.kl(posterior, q) + numpy_losses.renyi(posterior, 1)
        np.testing.assert_allclose(expected, distance, rtol=1e-13)


def test_softmax_mse_gradient():
    """The gradient is 2 q (r - <q, r>) with r = q - y."""
    with jax.enable_x64(True):
        q = numpy_losses.softmax(LOGITS)
        r = q - np.eye(CLASSES)[LABELS]
        gradient = jax.grad(lambda z: losses.softmax_mse(z, LABELS).sum())(LOGITS)
        np.testing.assert_allclose(gradient, 2 * q * (r - np.sum(q * r, axis=1, keepdims=True)), atol=1e-14)


def test_softmax_mse_at_a_uniform_output():
    zeros, label = np.zeros((1, 100)), np.zeros(1, int)
    assert losses.softmax_mse(zeros, label, reduction="class_mean")[0] == pytest.approx(0.0099)
    mse = jax.grad(lambda z: losses.softmax_mse(z, label).sum())(zeros)
    ce = jax.grad(lambda z: losses.cross_entropy(z, label).sum())(zeros)
    np.testing.assert_allclose(mse, 2 / 100 * ce, rtol=1e-4, atol=1e-8)


def test_softmax_mse_is_bounded():
    wrong = losses.softmax_mse(ONE_HOT, np.array([0]))
    assert wrong[0] == pytest.approx(2.0) and losses.softmax_mse(ONE_HOT, np.array([3]))[0] == 0


def test_full_smoothing_is_a_kl_to_uniform():
    smoothed = losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.3)
    parts = 0.7 * losses.cross_entropy(LOGITS, LABELS) + 0.3 * losses.cross_entropy(
        LOGITS, np.full((5, CLASSES), 1 / CLASSES)
    )
    np.testing.assert_allclose(smoothed, parts, rtol=1e-6)


def test_cross_entropy_keeps_what_a_clipped_probability_loses():
    logits = jnp.array([[0.0, 500.0]])
    assert losses.cross_entropy(logits, jnp.array([0]))[0] == 500
    np.testing.assert_allclose(jax.grad(lambda z: losses.cross_entropy(z, jnp.array([0]))[0])(logits), [[-1, 1]])


@pytest.mark.parametrize("num_top", [2, 5, CLASSES])
def test_top_score_difference_bounds(num_top):
    value = losses.top_score_difference(LOGITS, num_top=num_top)
    assert ((value >= 0) & (value <= 1)).all()
    assert losses.top_score_difference(ONE_HOT, num_top=num_top)[0] == pytest.approx(1)
    assert losses.top_score_difference(UNIFORM, num_top=num_top)[0] == pytest.approx(0, abs=1e-7)


def test_top_score_difference_gradient():
    """The gradient is q_j (w_j - sum_i w_i q_i), with w = 1 at the top, -1 / (K - 1) at the next, else 0."""
    with jax.enable_x64(True):
        q, weights = numpy_losses.softmax(LOGITS), np.zeros_like(LOGITS)
        ranked = np.argsort(-LOGITS, axis=1)
        np.put_along_axis(weights, ranked[:, :5], [[1, -0.25, -0.25, -0.25, -0.25]], axis=1)
        gradient = jax.grad(lambda z: losses.top_score_difference(z, num_top=5).sum())(LOGITS)
        np.testing.assert_allclose(gradient, q * (weights - np.sum(weights * q, axis=1, keepdims=True)), atol=1e-14)


def test_top_score_difference_needs_so_many_classes():
    with pytest.raises(ValueError, match=r"num_top=9 is above the 8 classes of logits \[5, 8\]"):
        losses.top_score_difference(LOGITS, num_top=9)


def test_tolerant_between_its_ends():
    np.testing.assert_array_equal(losses.tolerant(LOGITS, LABELS, eta=1.0), losses.cross_entropy(LOGITS, LABELS))
    np.testing.assert_array_equal(losses.tolerant(LOGITS, LABELS, eta=0.0), losses.top_score_difference(LOGITS))


def test_top_class_of_tolerant_is_the_networks_own():
    logits = np.zeros((2, CLASSES))
    logits[:, 0] = 5.0
    gap = losses.tolerant(logits, np.array([0, 1]), eta=0.0)
    assert gap[0] == gap[1] > 0


def test_confidence_penalty_bounds():
    assert losses.confidence_penalty(ONE_HOT)[0] == pytest.approx(0)
    assert losses.confidence_penalty(UNIFORM)[0] == pytest.approx(-np.log(CLASSES))
    np.testing.assert_allclose(losses.confidence_penalty(LOGITS), -losses.renyi_entropy(LOGITS, 1.0), rtol=1e-6)
