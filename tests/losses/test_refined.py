"""WSL, NormKD and RLD against NumPy, finite differences, and the losses that they become in special cases."""

import jax
import numpy as np
import pytest

from kdjax import losses

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = DRAW.normal(size=(2, 6, 5)) * 2
LABELS = np.array([0, 1, 2, 3, 4, 0])


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q), axis=-1)


def plain_wsl(s, t, weight_from=None):
    of_label = lambda z: -np.log(softmax(z)[range(6), LABELS])  # noqa: E731
    weight = 1 - np.exp(-of_label(s if weight_from is None else weight_from) / (of_label(t) + 1e-7))
    return 16 * weight * -np.sum(softmax(t / 4) * np.log(softmax(s / 4)), axis=-1)


def plain_normkd(s, t):
    own, other = (2 * z.std(axis=-1, ddof=1, keepdims=True) for z in (s, t))
    return other[:, 0] ** 2 * kl(softmax(t / other), softmax(s / own))


def plain_rld(s, t):
    found = []
    for z, p, label in zip(s, t, LABELS, strict=True):
        sure, own = softmax(p).max(), softmax(z)[label]
        scd = kl(np.array([sure, 1 - sure]), np.array([own, 1 - own]))
        kept = p < p[label]
        mcd = kl(softmax(p[kept] / 4), softmax(z[kept] / 4)) if kept.any() else 0.0
        found.append(scd + 8 * 16 * mcd)
    return np.array(found)


PLAIN = {"wsl": plain_wsl, "normkd": plain_normkd, "rld": plain_rld}


def compute(name, s, t, labels=LABELS):
    return losses.LOSSES[name](s, t) if name == "normkd" else losses.LOSSES[name](s, t, labels)


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_gradients_are_those_of_numpy(name):
    np.testing.assert_allclose(compute(name, STUDENT, TEACHER), PLAIN[name](STUDENT, TEACHER), rtol=1e-10)
    slope = jax.grad(lambda s: compute(name, s, TEACHER).sum())(STUDENT)
    fixed = {"weight_from": STUDENT} if name == "wsl" else {}  # no gradient flows through the weight
    for place in [(0, 0), (2, 2), (3, 1), (5, 4)]:
        step = np.zeros_like(STUDENT)
        step[place] = 1e-5
        ends = [PLAIN[name](STUDENT + sign * step, TEACHER, **fixed).sum() for sign in (1, -1)]
        np.testing.assert_allclose(slope[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PLAIN)
def test_shifts_and_leading_axes_change_nothing(name):
    value = compute(name, STUDENT, TEACHER)
    np.testing.assert_allclose(compute(name, STUDENT + 7, TEACHER - 9), value, rtol=1e-9)
    shaped = compute(name, STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), LABELS.reshape(2, 3))
    np.testing.assert_allclose(shaped.reshape(-1), value, rtol=1e-12)


@pytest.mark.parametrize("name", ["wsl", "rld"])
def test_a_label_that_no_class_has_is_nan(name):
    found = compute(name, STUDENT, TEACHER, np.array([0, 5, -1, 3, 4, 0]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False, False, False])


def test_rld_with_the_label_on_top_is_dkd_and_with_the_label_last_has_no_other_classes():
    top = TEACHER.copy()
    top[range(6), LABELS] = 9.0
    same = losses.rld(STUDENT, top, LABELS, label_temperature=4.0)
    np.testing.assert_allclose(same, losses.dkd(STUDENT, top, LABELS), rtol=1e-9)
    top[range(6), LABELS] = -9.0
    term = lambda s: losses.rld(s, top, LABELS, alpha=0.0).sum()  # noqa: E731
    value, slope = jax.value_and_grad(term)(STUDENT)
    assert value == 0 and not np.any(slope)


def test_normkd_is_kd_of_standardized_logits_up_to_its_factor():
    scaled = losses.normkd(STUDENT, TEACHER, scale=2.0) / (2 * TEACHER.std(axis=-1, ddof=1)) ** 2
    kd = losses.kd(STUDENT, TEACHER, temperature=2.0, standardize=True) / 4
    np.testing.assert_allclose(scaled, kd, rtol=1e-5)
    assert np.isnan(losses.normkd(np.zeros((1, 5)), TEACHER[:1]))[0]
