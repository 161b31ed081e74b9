"""Identities between KD, TTM, WTTM and the Rényi entropy, in value and in gradient, in float64.

Zheng & Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching", https://arxiv.org/abs/2402.11148
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest

from kdjax import losses

BATCH, CLASSES = 5, 6
RNG = np.random.default_rng(3)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, BATCH, CLASSES))
LABELS = RNG.integers(0, CLASSES, BATCH)
Q, P = numpy_losses.softmax(STUDENT), numpy_losses.softmax(TEACHER)
temperatures = pytest.mark.parametrize("T", [1.0, 2.0, 4.0, 20.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradient(function):
    """Returns the gradient of a loss [batch] with respect to the student's logits; each row has its own loss."""
    return jax.jit(jax.grad(lambda z: function(z).sum()))(STUDENT)


def same(first, second):
    """Asserts that two functions of the student's logits have equal values and gradients; the caller adds constants."""

    def both(z):
        return [(function(z), jax.grad(lambda z: function(z).sum())(z)) for function in (first, second)]

    (value, slope), (other_value, other_slope) = jax.jit(both)(STUDENT)
    np.testing.assert_allclose(value, other_value, atol=1e-12)
    np.testing.assert_allclose(slope, other_slope, atol=1e-12)


@temperatures
def test_temperature_is_a_power(T):
    """softmax(z / T) = p^(1/T) / sum p^(1/T)."""
    np.testing.assert_allclose(np.exp(losses.power_transform(TEACHER, 1 / T)), numpy_losses.power(P, 1 / T), rtol=1e-13)
    np.testing.assert_allclose(np.exp(losses.power_transform(TEACHER, 1 / T)), numpy_losses.softmax(TEACHER / T))


@temperatures
def test_ttm_is_kd_and_a_renyi_entropy(T):
    """KL(p_T || q) = T KL(p_T || q_T) - (T - 1) H_{1/T}(q) + (T - 1) H(p_T)."""
    constant = (T - 1) * losses.renyi_entropy(TEACHER / T, 1.0)

    def from_kd(z):
        return losses.kd(z, TEACHER, temperature=T) / T - (T - 1) * losses.student_renyi(z, order=1 / T) + constant

    same(lambda z: losses.ttm(z, TEACHER, gamma=1 / T), from_kd)


@pytest.mark.parametrize("share", [0.3, 0.9])
@temperatures
def test_composite_losses_match(T, share):
    """CE + beta TTM is (1 - share) CE + share KD minus an entropy, for beta = share T / (1 - share)."""
    beta = share * T / (1 - share)
    constant = beta * (T - 1) * losses.renyi_entropy(TEACHER / T, 1.0)

    def with_kd(z):
        terms = (1 - share) * losses.cross_entropy(z, LABELS) + share * losses.kd(z, TEACHER, temperature=T)
        return (terms - share * T * (T - 1) * losses.student_renyi(z, order=1 / T)) / (1 - share) + constant

    same(lambda z: losses.cross_entropy(z, LABELS) + beta * losses.ttm(z, TEACHER, gamma=1 / T), with_kd)


@temperatures
def test_gradients_in_closed_form(T):
    """The gradients are q - p_T for TTM, T (q_T - p_T) for KD, and (q_T - q) / (T - 1) for H_{1/T}."""
    p_T, q_T = numpy_losses.softmax(TEACHER / T), numpy_losses.softmax(STUDENT / T)
    np.testing.assert_allclose(gradient(lambda z: losses.ttm(z, TEACHER, gamma=1 / T)), Q - p_T, atol=1e-13)
    np.testing.assert_allclose(gradient(lambda z: losses.kd(z, TEACHER, temperature=T)), T * (q_T - p_T), atol=1e-12)
    entropy = gradient(lambda z: losses.student_renyi(z, order=1 / T))
    np.testing.assert_allclose((T - 1) * entropy, q_T - Q, atol=1e-13)


@temperatures
def test_wttm_gradient_and_weight(T):
    """The gradient is U q - p^gamma, with U = exp((1 - gamma) H_gamma(p)) between 1 and classes^(1 - gamma)."""
    gamma, weight = 1 / T, np.sum(P ** (1 / T), axis=1)
    expected = weight[:, None] * Q - P**gamma
    np.testing.assert_allclose(gradient(lambda z: losses.wttm(z, TEACHER, gamma=gamma)), expected, atol=1e-13)
    ratio = losses.wttm(STUDENT, TEACHER, gamma=gamma) / losses.ttm(STUDENT, TEACHER, gamma=gamma)
    np.testing.assert_allclose(ratio, np.exp((1 - gamma) * losses.renyi_entropy(TEACHER, gamma)), rtol=1e-12)
    assert (ratio > 1 - 1e-12).all() and (ratio < CLASSES ** (1 - gamma) + 1e-12).all()


@temperatures
def test_wttm_at_the_softest_and_the_hardest_teacher(T):
    one_hot, uniform = 1e4 * np.eye(CLASSES)[LABELS], np.zeros_like(TEACHER)
    hard = losses.wttm(STUDENT, one_hot, gamma=1 / T)
    np.testing.assert_allclose(hard, losses.cross_entropy(STUDENT, LABELS), rtol=1e-12)
    np.testing.assert_allclose(hard, losses.ttm(STUDENT, one_hot, gamma=1 / T), rtol=1e-12)
    soft, to_uniform = losses.wttm(STUDENT, uniform, gamma=1 / T), numpy_losses.kl(np.full_like(Q, 1 / CLASSES), Q)
    np.testing.assert_allclose(soft, CLASSES ** (1 - 1 / T) * to_uniform, rtol=1e-12)


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_temperature_one_is_plain_kd(name):
    """At T = 1 there is no transform and no weight."""
    same(lambda z: losses.LOSSES[name](z, TEACHER, gamma=1.0), lambda z: losses.kd(z, TEACHER, temperature=1.0))


def test_high_temperature_limits():
    """KD tends to a comparison of centred logits, TTM to the divergence from the uniform distribution."""
    centred = [z - z.mean(axis=1, keepdims=True) for z in (STUDENT, TEACHER)]
    kd = gradient(lambda z: losses.kd(z, TEACHER, temperature=1e4))
    np.testing.assert_allclose(kd, (centred[0] - centred[1]) / CLASSES, atol=1e-3)
    to_uniform = numpy_losses.kl(np.full_like(Q, 1 / CLASSES), Q)
    np.testing.assert_allclose(losses.ttm(STUDENT, TEACHER, gamma=1e-6), to_uniform, rtol=1e-5)


def test_minimisers():
    """TTM and WTTM are minimised by the transformed teacher, KD by the teacher itself."""
    for name in ("ttm", "wttm"):
        at_minimum = lambda z: losses.LOSSES[name](z, TEACHER, gamma=0.25).sum()
        value, slope = jax.value_and_grad(at_minimum)(jnp.asarray(0.25 * TEACHER))
        np.testing.assert_allclose(value, 0, atol=1e-13)
        np.testing.assert_allclose(slope, 0, atol=1e-13)
    value, slope = jax.value_and_grad(lambda z: losses.kd(z, TEACHER).sum())(jnp.asarray(TEACHER))
    np.testing.assert_allclose(value, 0, atol=1e-13)
    np.testing.assert_allclose(slope, 0, atol=1e-13)
