"""Properties of the distillation losses on logits and of the Rényi entropy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest

from kdjax import losses

BATCH, CLASSES = 8, 6
RNG = np.random.default_rng(0)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, BATCH, CLASSES))
MASK = np.array([1, 1, 0, 1, 0, 1, 1, 0], bool)
ORDERS = (1e-3, 0.25, 0.9, 0.999, 1.0, 1 + 1e-6, 1.1, 60.0)


@pytest.mark.parametrize(("name", "hyper"), [("kd", {}), ("ttm", {"gamma": 1.0}), ("wttm", {"gamma": 1.0})])
def test_zero_where_student_and_teacher_agree(name, hyper):
    logits = jnp.asarray(TEACHER)
    value, gradient = jax.value_and_grad(lambda z: losses.LOSSES[name](z, logits, **hyper).sum())(logits)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["kd", "ttm", "wttm"])
def test_divergences_are_positive(name):
    hyper = {} if name == "kd" else {"gamma": 0.25}
    assert (losses.LOSSES[name](STUDENT, TEACHER, **hyper) > 0).all()


def test_teacher_class_without_probability_is_allowed():
    teacher = np.where(np.arange(CLASSES) == 0, -np.inf, TEACHER)
    for value in (losses.kd(STUDENT, teacher), losses.ttm(STUDENT, teacher, gamma=0.5)):
        chex.assert_tree_all_finite(value)


def test_student_that_excludes_a_teachers_class_is_infinitely_far():
    student = np.where(np.arange(CLASSES) == 0, -np.inf, STUDENT)
    assert np.isposinf(losses.ttm(student, TEACHER, gamma=0.5)).all()


@pytest.mark.parametrize("normalize", ["none", "batch_mean"])
def test_mask_is_a_slice(normalize):
    masked = losses.wttm(STUDENT, TEACHER, gamma=0.2, normalize=normalize, where=MASK)
    sliced = losses.wttm(STUDENT[MASK], TEACHER[MASK], gamma=0.2, normalize=normalize)
    np.testing.assert_allclose(masked[MASK], sliced, rtol=1e-6)


def test_batch_mean_only_changes_the_scale():
    plain, normalized = (losses.wttm(STUDENT, TEACHER, gamma=0.2, normalize=way) for way in ("none", "batch_mean"))
    np.testing.assert_allclose(plain / normalized, np.full(BATCH, (plain / normalized)[0]), rtol=1e-5)
    weights = normalized / losses.ttm(STUDENT, TEACHER, gamma=0.2)
    assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_batch_mean_is_over_all_devices():
    """Devices have different masks, one of them empty."""
    mask = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)

    def body(student, teacher, mask):
        return losses.wttm(student, teacher, gamma=0.2, normalize="batch_mean", where=mask, axis_name="devices")

    split = [x.reshape(4, 2, *x.shape[1:]) for x in (STUDENT, TEACHER, mask)]
    by_device = jax.vmap(body, axis_name="devices")(*split).reshape(-1)
    whole = losses.wttm(STUDENT, TEACHER, gamma=0.2, normalize="batch_mean", where=mask)
    np.testing.assert_allclose(by_device, whole, rtol=1e-6)


def test_batch_mean_runs_over_all_leading_axes():
    tokens = [x.reshape(2, 4, CLASSES) for x in (STUDENT, TEACHER)]
    together = losses.wttm(*tokens, gamma=0.2, normalize="batch_mean", where=MASK.reshape(2, 4))
    flat = losses.wttm(STUDENT, TEACHER, gamma=0.2, normalize="batch_mean", where=MASK)
    np.testing.assert_allclose(together.reshape(-1), flat, rtol=1e-6)


def test_batch_mean_of_an_empty_mask_is_finite():
    function = lambda z: losses.wttm(z, TEACHER, gamma=0.2, normalize="batch_mean", where=np.zeros(BATCH, bool)).sum()
    chex.assert_tree_all_finite(jax.value_and_grad(function)(jnp.asarray(STUDENT)))


def test_masked_teacher_may_be_anything():
    teacher = np.where(MASK[:, None], TEACHER, np.nan)
    value = losses.wttm(STUDENT, teacher, gamma=0.2, normalize="batch_mean", where=MASK)
    assert np.isfinite(value[MASK]).all()


def test_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"where must be \[8\] for logits \[8, 6\], not \[3\]"):
        losses.wttm(STUDENT, TEACHER, gamma=0.2, where=MASK[:3])


def test_unequal_class_counts_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\[8, 6\].*\[8, 5\]"):
        losses.kd(STUDENT, TEACHER[:, :5])


@pytest.mark.parametrize("order", ORDERS)
def test_renyi_entropy_at_any_order_in_float32(order):
    """The NumPy formula is exact enough in float64 except within 1e-6 of order 1, where Shannon's entropy is used."""
    p = numpy_losses.softmax(TEACHER)
    expected = numpy_losses.renyi(p, 1 if abs(order - 1) <= 1e-6 else order)
    for static in ((), 1):
        value = jax.jit(losses.renyi_entropy, static_argnums=static)(TEACHER, order)
        np.testing.assert_allclose(value, expected, rtol=3e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_renyi_entropy_gradient_at_any_order_in_float32(order):
    """The gradient is order / (1 - order) (q_order - q), and -q (log q + H) at order 1."""
    q = numpy_losses.softmax(TEACHER)
    if abs(order - 1) <= 1e-6:
        expected = -q * (np.log(q) + numpy_losses.renyi(q, 1)[:, None])
    else:
        expected = order / (1 - order) * (numpy_losses.softmax(order * TEACHER) - q)
    gradient = jax.grad(lambda z, order: losses.renyi_entropy(z, order).sum())
    np.testing.assert_allclose(jax.jit(gradient, static_argnums=1)(TEACHER, order), expected, atol=2e-6)
    np.testing.assert_allclose(jax.jit(gradient)(TEACHER, order), expected, atol=2e-6)


@pytest.mark.parametrize("order", [0.25, 0.999, 1.0, 1.001, 2.0])
def test_renyi_entropy_differentiates_in_its_order(order):
    p, step = numpy_losses.softmax(TEACHER), 1e-3 if order == 1 else 1e-5
    expected = (numpy_losses.renyi(p, order + step) - numpy_losses.renyi(p, order - step)).sum() / (2 * step)
    slope = jax.grad(lambda order: losses.renyi_entropy(TEACHER, order).sum())(order)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_renyi_entropy_of_extreme_logits(order):
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [0.0, 1.0, -jnp.inf]])
    function = lambda z, order: losses.renyi_entropy(z, order).sum()
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(logits, order))


def test_renyi_entropy_bounds_and_monotonicity():
    entropy = jax.jit(losses.renyi_entropy)
    values = np.stack([entropy(TEACHER, order) for order in ORDERS])
    assert (np.diff(values, axis=0) <= 1e-6).all()  # the entropy decreases as the order grows
    assert (values > 0).all() and (values < np.log(CLASSES)).all()
    for order in ORDERS:
        uniform, one_hot = entropy(np.array([[7.0] * CLASSES, [9e3] + [0.0] * (CLASSES - 1)]), order)
        assert uniform == pytest.approx(np.log(CLASSES), rel=1e-6)
        assert one_hot == pytest.approx(0 if order > 0.01 else numpy_small_order(order), abs=1e-6)


def numpy_small_order(order):
    """Returns the entropy of the one-hot row above, where 5 exp(-9000 order) matters at order 1e-3."""
    return np.log1p((CLASSES - 1) * np.exp(-9e3 * order)) / (1 - order)
