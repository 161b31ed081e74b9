"""Every loss on logits keeps its digits in float32 where a high temperature makes both sides nearly uniform."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

RNG = np.random.default_rng(5)
STUDENT, TEACHER = 3 * RNG.normal(size=(2, 6, 8))
INPUTS = {"labels": RNG.integers(0, 8, 6), "noise": RNG.normal(size=(6, 2, 8)).astype(np.float32)}
INPUTS |= dict(zip(("student_strong_logits", "teacher_strong_logits"), 3 * RNG.normal(size=(2, 6, 8)), strict=True))
INPUTS |= {"class_outputs": RNG.dirichlet(np.ones(8), 8), "class_costs": RNG.uniform(size=(8, 8))}


def is_hot(loss):
    names = inspect.signature(loss).parameters
    return {"student_logits", "teacher_logits", "temperature"} <= set(names)


@pytest.mark.parametrize("name", [name for name, loss in losses.LOSSES.items() if is_hot(loss)])
def test_float32_has_the_digits_of_float64(name):
    loss = losses.LOSSES[name]
    inputs = {key: value for key, value in INPUTS.items() if key in inspect.signature(loss).parameters}

    @jax.jit
    def values_and_slope(student, teacher, temperature):
        values, pull = jax.vjp(lambda s: loss(s, teacher, **inputs, temperature=temperature), student)
        return values, pull(jnp.ones_like(values))[0]

    with jax.enable_x64(True):
        for temperature in (1e3, 1e4):
            single, double = (
                values_and_slope(jnp.asarray(STUDENT, kind), jnp.asarray(TEACHER, kind), temperature)
                for kind in (jnp.float32, jnp.float64)
            )
            np.testing.assert_allclose(single[0], double[0], rtol=1e-3)
            np.testing.assert_allclose(single[1], double[1], atol=1e-3 * np.abs(double[1]).max())
