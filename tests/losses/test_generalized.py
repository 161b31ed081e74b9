"""GKL over devices, with examples that do not count, and as what its two terms become by themselves."""

import jax
import numpy as np
import pytest

from kdjax import losses

STUDENT, TEACHER = 2 * np.random.default_rng(0).normal(size=(2, 8, 5))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_devices_share_the_sums_over_the_batch():
    counted = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)
    whole = losses.gkl(STUDENT, TEACHER, where=counted)
    split = [x.reshape(2, 4, *x.shape[1:]) for x in (STUDENT, TEACHER, counted)]
    found = jax.vmap(lambda s, t, w: losses.gkl(s, t, where=w, axis_name="d"), axis_name="d")(*split)
    np.testing.assert_allclose(found.reshape(-1), whole, rtol=1e-12)
    without = losses.gkl(STUDENT[counted], TEACHER[counted])
    np.testing.assert_allclose(whole[counted], without, rtol=1e-12)


def test_its_squared_error_sees_no_shift_and_is_0_at_equality():
    error = lambda s: losses.gkl(s, TEACHER, alpha=0.0)  # noqa: E731
    np.testing.assert_allclose(error(TEACHER + np.arange(8.0)[:, None]), 0, atol=1e-20)
    np.testing.assert_allclose(error(STUDENT - 7), error(STUDENT), rtol=1e-10)


def test_a_class_that_is_masked_out_plays_no_part():
    masked = [np.concatenate([x, np.full((8, 1), -np.inf)], axis=-1) for x in (STUDENT, TEACHER)]
    value, slope = jax.value_and_grad(lambda s: losses.gkl(s, masked[1]).sum())(masked[0])
    np.testing.assert_allclose(value, losses.gkl(STUDENT, TEACHER).sum(), rtol=1e-12)
    assert np.isfinite(slope).all()


def test_weights_of_classes_are_gkls_where_every_example_is_its_class():
    """Eight examples of eight classes, whose mean outputs are then the examples' own."""
    student, teacher = 2 * np.random.default_rng(1).normal(size=(2, 8, 8))
    outputs = np.asarray(jax.nn.softmax(teacher / 3.0))
    own = losses.gkl(student, teacher, gamma=0.4, teacher_temperature=3.0)
    found = losses.class_gkl(student, teacher, outputs, np.arange(8), gamma=0.4)
    np.testing.assert_allclose(found, own, rtol=1e-10)


def test_class_weights_with_gamma_1_are_ikl():
    """Its squared error is summed over pairs of classes and divided by the number of examples alone."""
    outputs, labels = np.random.default_rng(2).dirichlet(np.ones(5), 5), np.arange(8) % 5
    found = losses.class_gkl(STUDENT, TEACHER, outputs, labels, alpha=0.0, beta=12.0, gamma=1.0)
    d, w = TEACHER - STUDENT, outputs[labels]
    expected = 3 * np.einsum("ni,nj,nij->n", w, w, (d[:, :, None] - d[:, None]) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_class_weights_over_devices_with_examples_that_do_not_count():
    outputs, labels = np.random.default_rng(2).dirichlet(np.ones(5), 5), np.arange(8) % 5
    counted = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)
    whole = losses.class_gkl(STUDENT, TEACHER, outputs, labels, where=counted)
    found = jax.vmap(lambda s, t, y, w: losses.class_gkl(s, t, outputs, y, where=w, axis_name="d"), axis_name="d")(
        *(x.reshape(2, 4, *x.shape[1:]) for x in (STUDENT, TEACHER, labels, counted))
    )
    np.testing.assert_allclose(found.reshape(-1), whole, rtol=1e-12)
    part = losses.class_gkl(STUDENT[counted], TEACHER[counted], outputs, labels[counted])
    np.testing.assert_allclose(whole[counted], part, rtol=1e-12)
    assert np.isnan(losses.class_gkl(STUDENT, TEACHER, outputs, labels - 1)).sum() == 2
