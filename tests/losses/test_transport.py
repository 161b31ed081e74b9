"""WKD-L's laws: marginals, an unregularised limit by linear programming, masked classes, and the costs of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from kdjax import losses
from tests.losses import numpy_maps

draw = np.random.default_rng(0)
STUDENT, TEACHER = 2 * draw.normal(size=(2, 4, 5))
LABELS = np.array([0, 4, 2, 2])
COSTS = draw.uniform(0.1, 1, (5, 5))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cheapest(q, p, costs):
    """Returns the least cost of carrying q to p, by linear programming."""
    n = len(q)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    return linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([q, p])).fun


def test_the_cost_is_the_cheapest_one_up_to_the_entropy_of_the_plan():
    regularization, costs = 0.03, COSTS / 2
    options = {"gamma": 1.0, "label_weight": 0.0, "temperature": 2.0, "regularization": regularization}
    value = losses.wkdl(STUDENT, TEACHER, costs, LABELS, iterations=100, **options)
    for found, s, t, y in zip(value, STUDENT, TEACHER, LABELS, strict=True):
        q, p = (numpy_maps.softmax(np.delete(x, y) / 2) for x in (s, t))
        expected = cheapest(q, p, np.delete(np.delete(costs, y, 0), y, 1))
        assert expected - 1e-3 <= found <= expected + regularization * np.log(16)


def test_the_labels_logit_counts_in_the_labels_term_alone():
    shifted = STUDENT + 3 * np.eye(5)[LABELS]
    carried = lambda s: losses.wkdl(s, TEACHER, COSTS, LABELS, label_weight=0.0)  # noqa: E731
    np.testing.assert_allclose(carried(shifted), carried(STUDENT), rtol=1e-12)
    np.testing.assert_allclose(carried(STUDENT + 5), carried(STUDENT), rtol=1e-10)
    whole = losses.wkdl(STUDENT, TEACHER, COSTS, LABELS)
    np.testing.assert_allclose(whole, carried(STUDENT) + losses.label_term(STUDENT, TEACHER, LABELS), rtol=1e-12)


def test_leading_axes_extremes_and_labels_of_no_class():
    value = losses.wkdl(STUDENT, TEACHER, COSTS, LABELS)
    split = losses.wkdl(*(x.reshape(2, 2, 5) for x in (STUDENT, TEACHER)), COSTS, LABELS.reshape(2, 2))
    np.testing.assert_allclose(split.reshape(-1), value, rtol=1e-12)
    both = jax.jit(jax.value_and_grad(lambda s, t: losses.wkdl(s, t, COSTS.astype(np.float32), LABELS).sum()))
    for scale in (1.0, 50.0, 1e4):
        found, slope = both(np.float32(scale * STUDENT), np.float32(-scale * TEACHER))
        assert np.isfinite(found) and np.isfinite(slope).all(), scale
    assert np.isnan(losses.wkdl(STUDENT, TEACHER, COSTS, np.array([0, 5, -1, 2]))).tolist() == [0, 1, 1, 0]
    masked = [np.concatenate([x, np.full((4, 1), -np.inf)], axis=1) for x in (STUDENT, TEACHER)]
    with_masked = losses.wkdl(*masked, np.pad(COSTS, (0, 1)), LABELS, gamma=2.0)
    # The first factors are 1 / (classes - 1), so that ten iterations end where they would with one class fewer.
    np.testing.assert_allclose(with_masked, losses.wkdl(STUDENT, TEACHER, COSTS, LABELS, gamma=2.0), rtol=1e-2)


def test_bfloat16_is_computed_in_float32():
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TEACHER)]
    for loss, extra in ((losses.wkdl, (COSTS,)), (losses.class_gkl, (np.full((5, 5), 0.2),))):
        extra = tuple(np.float32(x) for x in extra)
        value = loss(*halves, *extra, LABELS)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, loss(*(x.astype(jnp.float32) for x in halves), *extra, LABELS))


def test_costs_of_classes_are_those_of_cka_over_the_examples_of_the_smallest_class():
    vectors = draw.normal(size=(3, 7, 4))
    filled = np.concatenate([vectors, np.full((3, 2, 4), np.nan)], axis=1)
    costs = losses.relation_costs(filled, np.array([9, 7, 8]), sharpness=2.0)
    np.testing.assert_allclose(costs, numpy_maps.relation_costs(vectors, 2.0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.diag(costs), 0, atol=1e-12)
    turned = np.linalg.qr(draw.normal(size=(4, 4)))[0]
    same = losses.relation_costs(np.stack([vectors[0], 3 * vectors[0] @ turned + 1]), np.array([7, 7]))
    np.testing.assert_allclose(same, 0, atol=1e-12)
