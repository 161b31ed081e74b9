"""The curriculum of CTKD's temperature."""

import jax
import numpy as np

from kdjax import losses


def test_a_reversed_gradient_is_minus_the_strength_times_the_gradient():
    value, slope = jax.value_and_grad(lambda x: losses.reversed_gradient(x, 0.25) ** 2)(3.0)
    assert value == 9 and slope == -0.25 * 6


def test_the_reversal_rises_from_0_to_1_and_stays():
    np.testing.assert_allclose([losses.reversal_strength(e, 10) for e in (0, 5, 10, 240)], [0, 0.5, 1, 1], atol=1e-6)
    rising = np.array([losses.reversal_strength(e, 10) for e in range(11)])
    assert (np.diff(rising) > 0).all()


def test_the_temperature_climbs_where_the_student_descends():
    student, teacher = 2 * np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)

    def loss(student, position, strength):
        temperature = 1 + 20 * jax.nn.sigmoid(losses.reversed_gradient(position, strength))
        return losses.ctkd(student, teacher, temperature).mean()

    loss = jax.jit(loss)
    numeric = (loss(student, 1.01, -1.0) - loss(student, 0.99, -1.0)) / 0.02
    plain = jax.grad(loss, 1)(student, 1.0, -1.0)
    np.testing.assert_allclose(plain, numeric, rtol=1e-2)
    assert abs(plain) > 1e-4
    np.testing.assert_allclose(jax.grad(loss, 1)(student, 1.0, 0.3), -0.3 * plain, rtol=1e-5)
    assert jax.grad(loss, 1)(student, 1.0, 0.0) == 0
    np.testing.assert_array_equal(jax.grad(loss)(student, 1.0, 1.0), jax.grad(loss)(student, 1.0, 0.0))
