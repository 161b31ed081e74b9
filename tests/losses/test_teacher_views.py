"""SSKD's losses on rotated images, against loops."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from kdjax import losses
from tests.losses.numpy_maps import softmax

rng = np.random.default_rng(3)
BATCH, CLASSES = 8, 5
ROTATED = tuple(2 * rng.normal(size=(BATCH, 4, CLASSES)) for _ in range(2))
VIEWS = rng.normal(size=(BATCH, 4, 6)), rng.normal(size=(BATCH, 4, 3))
LABELS = rng.integers(0, CLASSES, BATCH)


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.enable_x64(True):
        yield


def cosines(views):
    """Returns the rows of similarities to all upright images, and which of them is the own."""
    rows, own = [], []
    for i in range(len(views)):
        for j in (1, 2, 3):
            v = views[i, j]
            rows.append([v @ u / np.linalg.norm(v) / np.linalg.norm(u) for u in views[:, 0]])
            own.append(i)
    return np.array(rows), own


def mean_of_kept(student, teacher, truth, temperature, keep):
    ranks = [sorted(-row).index(-row[y]) for row, y in zip(teacher, truth)]
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    wrong = sum(rank > 0 for rank in ranks)
    kept = order[: len(ranks) - wrong + int(wrong * keep)]
    total = 0.0
    for i in kept:
        p, q = softmax(teacher[i][None] / temperature)[0], softmax(student[i][None] / temperature)[0]
        total += temperature**2 * (p * np.log(p / q)).sum()
    return total / len(kept)


def numpy_sskd(transformed=2.7, contrast=10.0, keep=(1.0, 0.75)):
    flat = [x[:, 1:].reshape(-1, CLASSES) for x in ROTATED]
    first = mean_of_kept(*flat, np.repeat(LABELS, 3), 4.0, keep[0])
    (student, _), (teacher, own) = (cosines(views) for views in VIEWS)
    return transformed * first + contrast * mean_of_kept(student, teacher, own, 0.5, keep[1])


def call(rotated=ROTATED[0], views=VIEWS[0], **hyper):
    return losses.sskd(rotated, ROTATED[1], views, VIEWS[1], LABELS, **hyper)


@pytest.mark.parametrize("keep", [(1.0, 0.75), (0.5, 0.0), (0.0, 1.0)])
def test_sskd_equals_loops(keep):
    value = jax.jit(lambda r, v: call(r, v, keep_transformed=keep[0], keep_contrast=keep[1]))(ROTATED[0], VIEWS[0])
    np.testing.assert_allclose(value, numpy_sskd(keep=keep), rtol=1e-10)


def test_view_cross_entropy_equals_loops():
    rows, own = cosines(VIEWS[0])
    expected = -np.mean([np.log(softmax(row[None])[0, i]) for row, i in zip(rows, own)])
    np.testing.assert_allclose(losses.view_cross_entropy(VIEWS[0]), expected, rtol=1e-10)


def test_gradients_are_those_of_finite_differences():
    check_grads(jax.jit(call), (ROTATED[0], VIEWS[0]), 1, ["rev"], atol=1e-5, rtol=1e-5)
    check_grads(jax.jit(losses.view_cross_entropy), (VIEWS[0],), 1, ["rev"], atol=1e-5, rtol=1e-5)


def test_upright_images_and_sizes_of_embeddings_play_no_part_where_they_should_not():
    moved = ROTATED[0].copy()
    moved[:, 0] += rng.normal(size=(BATCH, CLASSES))
    loss, plain = jax.jit(losses.sskd), numpy_sskd()
    np.testing.assert_allclose(loss(moved, ROTATED[1], *VIEWS, LABELS), plain, rtol=1e-10)
    np.testing.assert_allclose(loss(*ROTATED, 3 * VIEWS[0], VIEWS[1], LABELS), plain, rtol=1e-10)
    same = loss(ROTATED[1], ROTATED[1], VIEWS[1], VIEWS[1], LABELS)
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_the_batch_is_that_of_all_devices():
    shards = [x.reshape(4, 2, *x.shape[1:]) for x in (*ROTATED, *VIEWS, LABELS)]
    spread = jax.jit(jax.vmap(lambda *x: losses.sskd(*x, axis_name="d"), axis_name="d"))(*shards)
    np.testing.assert_allclose(spread, np.full(4, numpy_sskd()), rtol=1e-10)
    spread = jax.vmap(lambda v: losses.view_cross_entropy(v, axis_name="d"), axis_name="d")(shards[2])
    np.testing.assert_allclose(spread, np.full(4, losses.view_cross_entropy(VIEWS[0])), rtol=1e-10)


def test_what_does_not_fit_is_refused_with_its_shapes():
    with pytest.raises(ValueError, match="student_views must be .batch, rotations, .*, not none; see the network sskd"):
        losses.sskd(*ROTATED, None, VIEWS[1], LABELS)
    with pytest.raises(ValueError, match=r"must have one shape, .* not \[8, 4, 5\], \[8, 4, 6\]"):
        losses.sskd(ROTATED[0], VIEWS[0], *VIEWS, LABELS)
