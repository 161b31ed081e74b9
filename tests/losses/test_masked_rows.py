"""Rows of NaN that a mask leaves out: the others' values are those of a slice, and the gradient is 0 there."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = 2 * DRAW.normal(size=(2, 6, 5))
COUNTED = np.array([1, 1, 0, 1, 0, 1], bool)
ROWS = {"labels": np.arange(6) % 5, "noise": DRAW.normal(size=(6, 2, 5))}
FIXED = {"class_outputs": DRAW.dirichlet(np.ones(5), 5), "class_costs": DRAW.uniform(size=(5, 5)), "stage_logits": ()}
NAMES = ("wttm", "dkd", "dist", "nkd", "wsl", "normkd", "rld", "gkl", "class_gkl", "wkdl", "label_term", "tekap", "ofa")


@pytest.mark.parametrize("name", NAMES)
def test_masked_rows_of_nan_change_nothing_and_have_no_gradient(name):
    loss = losses.LOSSES[name]
    takes = inspect.signature(loss).parameters
    options = {key: value for key, value in FIXED.items() if key in takes}
    options |= {"gamma": 0.4, "normalize": "batch_mean"} if name == "wttm" else {}
    rows = {key: value for key, value in ROWS.items() if key in takes}
    mask = {"where": COUNTED} if "where" in takes else {}

    def total(student, teacher):
        values = loss(student_logits=student, teacher_logits=teacher, **rows, **options, **mask)
        return jnp.sum(jnp.where(COUNTED, values, 0))

    with jax.enable_x64(True):
        bad = [np.where(COUNTED[:, None], x, np.nan) for x in (STUDENT, TEACHER)]
        value, slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*bad)
        part = {key: value[COUNTED] for key, value in rows.items()}
        kept = loss(student_logits=STUDENT[COUNTED], teacher_logits=TEACHER[COUNTED], **part, **options)
        np.testing.assert_allclose(value, jnp.sum(kept), rtol=1e-10)
    for slope in slopes:
        np.testing.assert_array_equal(slope[~COUNTED], 0)
        assert np.isfinite(slope).all()
