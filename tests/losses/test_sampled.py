"""Teachers of which some classes were drawn: their losses are unbiased, shown by the sum over all possible draws."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

CLASSES, DRAWS = 3, 2
STUDENT, TEACHER = np.array([0.3, -1.2, 0.8]), np.array([1.0, 0.1, -0.7])
P = np.exp(TEACHER) / np.exp(TEACHER).sum()
PROPOSAL = np.array([0.2, 0.5, 0.3])
LOSSES = {"forward_kl": lambda s, t: losses.forward_kl(s, t), "cross_entropy": lambda s, t: losses.cross_entropy(s, t)}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("proposal", [P, PROPOSAL], ids=["teacher", "another"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_all_draws_is_the_dense_value_and_gradient(name, proposal):
    draws = np.array(list(itertools.product(range(CLASSES), repeat=DRAWS)))
    teacher = losses.sampled_teacher(draws, np.log(P)[draws], np.log(proposal)[draws])
    chances = proposal[draws].prod(axis=-1)
    rows = np.broadcast_to(STUDENT, (len(draws), CLASSES))
    values = LOSSES[name](rows, teacher)
    slopes = jax.grad(lambda s: LOSSES[name](s, teacher).sum())(rows)
    dense = jax.value_and_grad(lambda s: LOSSES[name](s, jnp.asarray(P if name == "cross_entropy" else TEACHER)))
    chex.assert_trees_all_close((chances @ values, chances @ slopes), dense(STUDENT), rtol=1e-12)
    if proposal is not P:  # Weights that were normalised would be biased.
        assert not np.allclose(teacher.weights.sum(-1), 1)


def test_counts_are_repetitions_and_0_is_an_empty_place():
    one = losses.sampled_teacher([0, 0, 2], np.log(P)[[0, 0, 2]], np.log(PROPOSAL)[[0, 0, 2]])
    log_probs = [*np.log(P)[[0, 2]], -np.inf]
    other = losses.sampled_teacher([0, 2, 1], log_probs, [*np.log(PROPOSAL)[[0, 2]], -np.inf], counts=[2, 1, 0])
    found, expected = (jax.value_and_grad(lambda s, t=t: losses.forward_kl(s, t))(STUDENT) for t in (one, other))
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_what_would_be_biased_or_does_not_fit_is_refused():
    teacher = losses.sampled_teacher([[0, 1]], np.log(P)[[[0, 1]]], np.log(P)[[[0, 1]]])
    for name in ("reverse_kl", "kd", "dkd"):
        labels = (np.zeros(1, int),) if name == "dkd" else ()
        with pytest.raises(ValueError, match=f"{name} takes no sampled teacher: only forward_kl and cross_entropy"):
            losses.LOSSES[name](STUDENT[None], teacher, *labels)
    with pytest.raises(ValueError, match="needs temperature 1, not 2.0"):
        losses.forward_kl(STUDENT[None], teacher, temperature=2.0)
    with pytest.raises(ValueError, match=r"\[1, 2\] does not fit logits \[3\]"):
        losses.forward_kl(STUDENT, teacher)
    with pytest.raises(ValueError, match="one shape"):
        losses.sampled_teacher([0, 1], [0.0], [0.0, 0.0])
