"""MLKD: masks, devices and leading axes, and what each of its terms sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

STUDENT, TEACHER, STUDENT_STRONG, TEACHER_STRONG = 2 * np.random.default_rng(0).normal(size=(4, 8, 5))
ALL = (STUDENT, TEACHER, STUDENT_STRONG, TEACHER_STRONG)
mlkd = jax.jit(losses.mlkd, static_argnames="axis_name")
COUNTED = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_a_mask_is_a_slice_and_what_it_leaves_out_has_no_gradient():
    whole = mlkd(*ALL, where=COUNTED)
    np.testing.assert_allclose(whole[COUNTED], mlkd(*(x[COUNTED] for x in ALL)), rtol=1e-12)

    def total(*logits):
        return jnp.sum(jnp.where(COUNTED, mlkd(*logits, where=COUNTED), 0))

    damaged = [np.where(COUNTED[:, None], x, np.nan) for x in ALL]
    value, slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(*damaged)
    np.testing.assert_allclose(value, whole[COUNTED].sum(), rtol=1e-12)
    for slope in slopes:
        np.testing.assert_array_equal(slope[~COUNTED], 0)
        assert np.isfinite(slope).all()


def test_devices_and_leading_axes_share_one_batch():
    whole = mlkd(*ALL, where=COUNTED)
    split = [x.reshape(2, 4, *x.shape[1:]) for x in (*ALL, COUNTED)]
    found = jax.vmap(lambda *x: mlkd(*x[:4], where=x[4], axis_name="d"), axis_name="d")(*split)
    np.testing.assert_allclose(found.reshape(-1), whole, rtol=1e-12)
    np.testing.assert_allclose(mlkd(*split[:4], where=split[4]).reshape(-1), whole, rtol=1e-12)


def test_the_strong_view_counts_in_kd_at_three_temperatures_alone():
    apart = mlkd(*ALL) - mlkd(STUDENT, TEACHER, TEACHER_STRONG, TEACHER_STRONG)
    expected = sum(losses.kd(STUDENT_STRONG, TEACHER_STRONG, temperature=t) for t in (4.0, 3.0, 5.0))
    np.testing.assert_allclose(apart, expected, rtol=1e-10)


def test_half_precision_is_computed_in_float32():
    halves = [jnp.asarray(x, jnp.bfloat16) for x in ALL]
    value = mlkd(*halves)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, mlkd(*(x.astype(jnp.float32) for x in halves)))
