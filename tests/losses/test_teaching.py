"""The losses that train a network to teach: their formulas in NumPy, their gradients, and their limits."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpy_losses
import pytest

from kdjax import losses

CLASSES = 5
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(2, 4, CLASSES))  # two leading axes
LABELS = RNG.integers(0, CLASSES, (2, 4))
SOFT = RNG.dirichlet(np.ones(CLASSES), size=(2, 4))
CENTROIDS = RNG.dirichlet(np.ones(CLASSES), size=CLASSES)
BRANCHES = tuple(RNG.normal(size=(2, 2, 4, CLASSES)))
ONE_HOT = np.eye(CLASSES)[LABELS]


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.enable_x64(True):
        yield


def check(loss, logits, expected):
    """Compares a loss with its formula, its gradient with difference quotients, and asks for one value an example."""
    value = jax.jit(loss)(logits)
    assert value.shape == np.shape(expected)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    jax.test_util.check_grads(jax.jit(loss), (jnp.asarray(logits),), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["integer", "soft"])
def test_mcmi_is_cross_entropy_minus_the_divergence_from_the_centroid(labels):
    p = numpy_losses.softmax(LOGITS)
    y = ONE_HOT if labels is LABELS else SOFT
    divergence = sum(y[..., k] * numpy_losses.kl(p, CENTROIDS[k]) for k in range(CLASSES))
    check(lambda z: losses.centroid_divergence(z, labels, CENTROIDS), LOGITS, divergence)
    expected = -np.sum(y * np.log(p), axis=-1) - 0.25 * divergence
    check(lambda z: losses.mcmi(z, labels, CENTROIDS, cmi_weight=0.25), LOGITS, expected)
    np.testing.assert_array_equal(
        losses.mcmi(LOGITS, labels, CENTROIDS, cmi_weight=0.0), losses.cross_entropy(LOGITS, labels)
    )


def test_gradient_of_the_divergence_from_a_centroid():
    """It is p (log p - log Q_y - KL), and the centroids get none."""
    p, q = numpy_losses.softmax(LOGITS), CENTROIDS[LABELS]
    own = p * (np.log(p / q) - numpy_losses.kl(p, q)[..., None])
    by_logits, by_centroids = jax.grad(lambda z, c: losses.centroid_divergence(z, LABELS, c).sum(), (0, 1))(
        jnp.asarray(LOGITS), jnp.asarray(CENTROIDS)
    )
    np.testing.assert_allclose(by_logits, own, atol=1e-14)
    assert not by_centroids.any()


def test_mcmi_is_finite_where_a_centroid_has_a_zero_and_logits_are_large():
    extreme = jnp.asarray(1e4 * np.sign(LOGITS), jnp.float32)
    value, gradient = jax.value_and_grad(lambda z: losses.mcmi(z, LABELS, np.eye(CLASSES, dtype=np.float32)).sum())(
        extreme
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isnan(losses.mcmi(LOGITS, np.full((2, 4), CLASSES), CENTROIDS)).all()
    with pytest.raises(ValueError, match=r"centroids must be \[classes, classes\] for logits .*, not \[4, 5\]"):
        losses.mcmi(LOGITS, LABELS, CENTROIDS[1:])


def test_the_conditional_mutual_information_is_the_mean_divergence_from_the_mean_output():
    """I(X; Y_hat | Y) = H(Y_hat | Y) - H(Y_hat | X) for outputs that depend on the image alone."""
    p, labels = numpy_losses.softmax(LOGITS).reshape(-1, CLASSES), LABELS.reshape(-1)
    means = np.stack([p[labels == k].mean(axis=0) for k in range(CLASSES) if (labels == k).any()])
    shares = np.array([(labels == k).mean() for k in range(CLASSES) if (labels == k).any()])
    information = np.sum(shares * numpy_losses.renyi(means, 1)) - numpy_losses.renyi(p, 1).mean()
    centroids = losses.class_centroids(p, labels)
    value = losses.centroid_divergence(LOGITS, LABELS, centroids).mean()
    np.testing.assert_allclose(value, information, rtol=1e-12)


def test_centroids_of_parts_of_the_data_add_up_and_leave_out_what_does_not_count():
    p, labels = numpy_losses.softmax(LOGITS).reshape(-1, CLASSES), LABELS.reshape(-1)
    parts = [losses.centroid_sums(p[rows], labels[rows]) for rows in (slice(0, 3), slice(3, None))]
    whole, counts = losses.centroid_sums(p, labels)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole, rtol=1e-12)
    np.testing.assert_array_equal(parts[0][1] + parts[1][1], counts)
    counted = np.arange(8) % 3 > 0
    np.testing.assert_allclose(
        losses.class_centroids(p, labels, where=counted), losses.class_centroids(p[counted], labels[counted])
    )
    absent = np.setdiff1d(np.arange(CLASSES), labels[counted])
    np.testing.assert_allclose(np.asarray(losses.class_centroids(p[counted], labels[counted]))[absent], 1 / CLASSES)
    soft = losses.class_centroids(p, SOFT.reshape(-1, CLASSES))
    weights = SOFT.reshape(-1, CLASSES) / SOFT.reshape(-1, CLASSES).sum(axis=0)
    np.testing.assert_allclose(soft, weights.T @ p, rtol=1e-12)


def test_moving_centroids_are_means_of_old_and_new_and_stay_where_a_class_is_absent():
    p, labels = numpy_losses.softmax(LOGITS[0]), np.array([0, 0, 3, 3])
    moved = np.asarray(losses.move_centroids(CENTROIDS, *losses.centroid_sums(p, labels), 0.9))
    for k in range(CLASSES):
        mean = p[labels == k].mean(axis=0) if (labels == k).any() else CENTROIDS[k]
        np.testing.assert_allclose(moved[k], 0.9 * CENTROIDS[k] + 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(losses.move_centroids(CENTROIDS, *losses.centroid_sums(p, labels), 1.0), CENTROIDS)


def test_consistency_is_its_formula_and_vanishes_with_its_gradient_where_nothing_has_changed():
    p = numpy_losses.softmax(LOGITS)
    check(lambda z: losses.consistency(z, SOFT), LOGITS, np.sum((p - SOFT) ** 2, axis=-1))
    value, gradient = jax.value_and_grad(lambda z: losses.consistency(z, jax.nn.softmax(z)).sum())(jnp.asarray(LOGITS))
    assert value == 0 and not gradient.any()
    with pytest.raises(ValueError, match=r"remembered \[4, 5\] must have the shape of logits \[2, 4, 5\]"):
        losses.consistency(LOGITS, SOFT[0])


def test_a_memory_is_the_mean_or_counts_the_first_output_twice_as_released():
    outputs = RNG.dirichlet(np.ones(3), size=6)
    for average, weights in (("mean", np.ones(6)), ("released", np.array([2, 1, 1, 1, 1, 1]))):
        memory = np.zeros(3)
        for visit, output in enumerate(outputs, start=1):
            share = losses.remembered_share(visit, average)
            memory = (1 - share) * memory + share * output
        np.testing.assert_allclose(memory, weights @ outputs / weights.sum(), rtol=1e-12)


def test_lipschitz_adds_one_norm_for_each_layer():
    kernel, dense = RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(4, 6))
    scale, bias, var = RNG.normal(size=4), RNG.normal(size=4), RNG.uniform(1, 2, size=4)
    parameters = {
        "block": {"conv": {"kernel": kernel}, "bn": {"scale": scale, "bias": bias}},
        "fc": {"kernel": dense, "bias": RNG.normal(size=6)},
        "norm": {"scale": scale, "bias": bias},  # a LayerNorm: it has no running statistics
    }
    statistics = {"block": {"bn": {"mean": bias, "var": var}}}
    slopes = np.abs(scale) / np.sqrt(var + 1e-5)
    expected = np.abs(kernel).sum() + slopes.max() + np.abs(dense).sum(axis=1).max()
    value = jax.jit(losses.lipschitz)(parameters, statistics)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert np.linalg.norm(dense.T, 1) == np.abs(dense).sum(axis=1).max()  # the operator of y = x W, for the 1-norm
    own, of_statistics = jax.grad(losses.lipschitz, (0, 1))(parameters, statistics)
    np.testing.assert_array_equal(own["block"]["conv"]["kernel"], np.sign(kernel))
    assert np.count_nonzero(own["block"]["bn"]["scale"]) == 1 and not own["fc"]["bias"].any()
    assert own["block"]["bn"]["scale"][slopes.argmax()] == np.sign(scale)[slopes.argmax()] / np.sqrt(var + 1e-5)[
        slopes.argmax()
    ]  # fmt: skip
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_statistics))
    with pytest.raises(ValueError, match="no layer with a kernel"):
        losses.lipschitz({"norm": {"scale": scale}}, {})


@pytest.mark.parametrize("direction", ["to_branch", "to_teacher"])
def test_student_branches_are_their_formula_in_both_directions(direction):
    expected = 0
    for branch in BRANCHES:
        pair = [numpy_losses.softmax(z / 2) for z in (LOGITS, branch)]
        log_q = np.log(numpy_losses.softmax(branch))
        expected = expected - 0.5 * np.sum(ONE_HOT * log_q, axis=-1)
        expected = expected + 3 * 4 * numpy_losses.kl(*(pair if direction == "to_branch" else pair[::-1]))
    options = {"ce_weight": 0.5, "kl_weight": 3.0, "temperature": 2.0, "direction": direction}
    check(lambda z: losses.student_branches(z, BRANCHES, LABELS, **options), LOGITS, expected)
    by_branch = jax.grad(lambda b: losses.student_branches(LOGITS, (b,), LABELS, **options).sum())(BRANCHES[0])
    assert np.abs(by_branch).min() > 0
    with pytest.raises(ValueError, match="has no branches"):
        losses.student_branches(LOGITS, (), LABELS)


def test_generalised_cross_entropy_between_its_limits():
    z, labels = LOGITS[0], LABELS[0]
    p = numpy_losses.softmax(z)[np.arange(4), labels]
    np.testing.assert_allclose(losses.gce(z, labels, q=0.0), -np.log(p), rtol=1e-12)
    np.testing.assert_allclose(losses.gce(z, labels, q=1e-6), -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(losses.gce(z, labels, q=1.0), 1 - p, rtol=1e-12)
    gradient = jax.grad(lambda z: losses.gce(z, labels).sum())(z)
    ce = jax.grad(lambda z: losses.cross_entropy(z, labels).sum())(z)
    np.testing.assert_allclose(gradient, p[:, None] ** 0.7 * ce, rtol=1e-10, atol=1e-14)


def test_generalised_cross_entropy_is_not_a_proper_score():
    """Its expected value over labels is least at p proportional to p*^(1 / (1 - q)), which is not p*."""
    posterior = SOFT[0]
    best = posterior ** (1 / 0.3)
    at_best = jax.grad(lambda z: losses.gce(z, posterior).sum())(jnp.log(best))
    at_posterior = jax.grad(lambda z: losses.gce(z, posterior).sum())(jnp.log(posterior))
    np.testing.assert_allclose(at_best, 0, atol=1e-12)
    assert np.abs(at_posterior).max() > 0.01


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_corrected_kd_adds_the_derivative_in_the_teachers_probabilities(temperature):
    """The correction is (y - p) . d/dp CE(w(p), q_T), w(p) being p at the temperature, where p is above the floor."""
    student, teacher, labels = LOGITS[0], LOGITS[1], LABELS[0]
    p, log_q = jax.nn.softmax(teacher), jax.nn.log_softmax(student / temperature)

    def cross(p):
        w = p ** (1 / temperature)
        return -jnp.sum(w / w.sum(-1, keepdims=True) * log_q, axis=-1)

    correction = jax.jvp(cross, (p,), (ONE_HOT[0] - p,))[1]
    value = losses.corrected_kd(student, teacher, labels, temperature=temperature, floor=0.0)
    expected = losses.kd(student, teacher, temperature=temperature) + temperature**2 * correction
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_corrected_kd_is_kd_where_the_teacher_is_the_posterior():
    """Over labels drawn from p, the mean of the correction is 0."""
    student, teacher = LOGITS[0], LOGITS[1]
    value = losses.corrected_kd(student, teacher, numpy_losses.softmax(teacher), floor=0.0)
    np.testing.assert_allclose(value, losses.kd(student, teacher), rtol=1e-11)
