"""Divergences from hidden states, computed by chunks of rows, against the dense form."""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpy_losses
import pytest

from kdjax import losses
from kdjax.types import TopK

ROWS, WIDTH, CLASSES = 10, 4, 9
RNG = np.random.default_rng(0)
HIDDEN, KERNEL = RNG.normal(size=(2, ROWS // 2, WIDTH)), RNG.normal(size=(WIDTH, CLASSES))
TEACHER = RNG.normal(size=(2, ROWS // 2, 6)), RNG.normal(size=(6, CLASSES))
COTANGENTS = RNG.normal(size=(2, ROWS // 2))
LOG_PROBS = np.log(numpy_losses.softmax(TEACHER[0] @ TEACHER[1]))
ORDER = np.argsort(-LOG_PROBS, axis=-1)[..., :3]
TOP = TopK(ORDER, np.take_along_axis(LOG_PROBS, ORDER, axis=-1))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pulled(function, *arguments):
    """Returns values and the gradients for a cotangent of its own of every row."""
    values, pull = jax.vjp(jax.jit(function), *arguments)
    return values, pull(jnp.asarray(COTANGENTS))


@pytest.mark.parametrize("chunk", [1, 4, 10, 1024])  # 10 rows: 10 chunks, two full ones and a rest, one, less than one
def test_is_the_dense_form_in_value_and_gradient(chunk):
    def chunked(hidden, kernel, *teacher):
        return losses.linear_divergence(hidden, kernel, teacher, kind="jensen_shannon", temperature=2.0, chunk=chunk)

    def dense(hidden, kernel, *teacher):
        return losses.jensen_shannon(hidden @ kernel, teacher[0] @ teacher[1], temperature=2.0)

    found, expected = (pulled(f, HIDDEN, KERNEL, *TEACHER) for f in (chunked, dense))
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["tail", "renormalize", "zero"])
def test_takes_a_top_k_teacher(mode):
    chunked = functools.partial(losses.linear_divergence, teacher=TOP, chunk=4, mode=mode)
    found = pulled(lambda h, k: chunked(h, k), HIDDEN, KERNEL)
    expected = pulled(lambda h, k: losses.forward_kl(h @ k, TOP, mode=mode), HIDDEN, KERNEL)
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_of_second_order_forward_and_reverse():
    total = jax.jit(lambda h, k: losses.linear_divergence(h, k, (TEACHER[0][0], TEACHER[1]), chunk=2).sum())
    jax.test_util.check_grads(total, (HIDDEN[0], KERNEL), order=2, rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_count_may_be_anything():
    hidden, counted = HIDDEN.copy(), np.ones((2, ROWS // 2), bool)
    hidden[0, 1], counted[0, 1] = np.nan, False
    values = losses.linear_divergence(hidden, KERNEL, TEACHER, chunk=3, where=counted)
    expected = np.where(counted, losses.forward_kl(HIDDEN @ KERNEL, TEACHER[0] @ TEACHER[1]), 0)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_the_logits_of_all_rows_are_never_held():
    """Neither forward nor backward, nor as what the gradient keeps: the temporaries are a few chunks."""
    rows, classes, chunk = 512, 1000, 32
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 8), (8, classes), (rows, 8), (8, classes))]
    loss = lambda h, k, t, tk: losses.linear_divergence(h, k, (t, tk), chunk=chunk).sum()  # noqa: E731
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * classes * 4


def test_half_precision_is_summed_in_float32():
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (HIDDEN, KERNEL, *TEACHER)]
    values = losses.linear_divergence(*halves[:2], tuple(halves[2:]))
    assert values.dtype == jnp.float32
    wide = [x.astype(jnp.float32) for x in halves]
    np.testing.assert_allclose(values, losses.forward_kl(wide[0] @ wide[1], wide[2] @ wide[3]), rtol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"hidden \[2, 5, 4\] and kernel \[9, 4\] must be"):
        losses.linear_divergence(HIDDEN, KERNEL.T, TEACHER)
    with pytest.raises(ValueError, match="must have the same rows"):
        losses.linear_divergence(HIDDEN, KERNEL, (TEACHER[0][0], TEACHER[1]))
    with pytest.raises(ValueError, match="chunk must be an integer"):
        losses.linear_divergence(HIDDEN, KERNEL, TEACHER, chunk=0)
    with pytest.raises(ValueError, match="kind must be one of"):
        losses.linear_divergence(HIDDEN, KERNEL, TEACHER, kind="kl")
