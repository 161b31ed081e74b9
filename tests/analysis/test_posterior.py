"""Distances to a posterior: their formulas, their decomposition, and the noise of a measured posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_analysis as plain
import pytest
import scipy.special

from kdjax import analysis

SIZE, CLASSES = 20, 6


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(SIZE, CLASSES)), rng.dirichlet(np.ones(CLASSES), SIZE)


def scores(logits, posterior, **options):
    with jax.enable_x64(True):
        return analysis.posterior_scores(logits, posterior, **options)


def test_each_is_its_formula(known):
    logits, posterior = known
    q = plain.softmax(logits)
    expected = {
        "squared_distance": np.mean([np.sum((a - b) ** 2) for a, b in zip(q, posterior)]),
        "kl_posterior_network": scipy.special.rel_entr(posterior, q).sum(axis=1).mean(),
        "kl_network_posterior": scipy.special.rel_entr(q, posterior).sum(axis=1).mean(),
        "cross_entropy": np.mean([-np.sum(p * np.log(a)) for a, p in zip(q, posterior)]),
        "posterior_entropy": scipy.special.entr(posterior).sum(axis=1).mean(),
        "label_noise": np.mean([1 - np.sum(p**2) for p in posterior]),
        "squared_error": np.mean(
            [sum(p[y] * np.sum((a - np.eye(CLASSES)[y]) ** 2) for y in range(CLASSES)) for a, p in zip(q, posterior)]
        ),
    }
    found = scores(logits, posterior)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    single = analysis.posterior_scores(logits.astype(np.float32), posterior.astype(np.float32))
    assert single == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        analysis.squared_distance(logits, posterior), np.sum((q - posterior) ** 2, axis=1), rtol=1e-5
    )


def test_what_training_losses_expect_is_a_distance_and_a_constant(known):
    logits, posterior = known
    found = scores(logits, posterior)
    parts = analysis.decomposition(found)
    assert parts["squared_error"] == pytest.approx(found["squared_error"], abs=1e-12)
    assert parts["cross_entropy"] == pytest.approx(found["cross_entropy"], abs=1e-12)


def test_the_posterior_itself_is_at_distance_zero(known):
    found = scores(np.log(known[1]), known[1])
    for name in ("squared_distance", "kl_posterior_network", "kl_network_posterior"):
        assert found[name] == pytest.approx(0, abs=1e-12)
    assert found["squared_error"] == pytest.approx(found["label_noise"], abs=1e-12)


def test_a_posterior_with_zeros_is_infinitely_far_one_way_unless_floored():
    found = scores(np.zeros((2, 4)), np.eye(4)[:2])
    assert found["kl_posterior_network"] == pytest.approx(np.log(4)) and found["posterior_entropy"] == 0
    assert found["kl_network_posterior"] == np.inf
    floored = scores(np.zeros((2, 4)), np.eye(4)[:2], log_floor=-10.0)
    assert floored["kl_network_posterior"] == pytest.approx(-np.log(4) + 10 * 3 / 4)


def test_reference_code_distance_is_a_norm_of_the_whole_set(known):
    logits, posterior = known
    found = analysis.reference_code_distance(analysis.posterior_sums(logits, posterior))
    assert found == pytest.approx(np.linalg.norm(plain.softmax(logits) - posterior), rel=1e-5)


def test_sampling_noise_is_what_frequencies_of_n_labels_show():
    rng = np.random.default_rng(1)
    p, n, draws = np.array([0.6, 0.3, 0.1]), 7, 40_000
    counts = rng.multinomial(n, p, size=draws)
    frequencies, raters = analysis.from_counts(counts)
    np.testing.assert_allclose(frequencies, counts / n, rtol=1e-6)
    np.testing.assert_array_equal(raters, n)
    expected = (1 - np.sum(p**2)) / n
    assert analysis.sampling_noise(p[None], n)[0] == pytest.approx(expected, rel=1e-5)
    error = 4 / np.sqrt(draws)
    assert np.mean(np.sum((counts / n - p) ** 2, axis=1)) == pytest.approx(expected, rel=error)
    estimates = analysis.sampling_noise_estimate(frequencies, raters)
    assert np.mean(estimates) == pytest.approx(expected, rel=error)


def test_the_corrected_distance_is_that_to_the_true_posterior():
    rng = np.random.default_rng(2)
    truth, draws = rng.dirichlet(np.ones(4), 50), 400
    posterior = np.repeat(truth, draws, axis=0)
    raters = np.repeat(rng.integers(2, 6, 50), draws)
    measured = rng.multinomial(raters, posterior) / raters[:, None]
    logits = np.repeat(rng.normal(size=(50, 4)), draws, axis=0)
    found = analysis.posterior_scores(logits, measured, raters=raters)
    expected = analysis.posterior_scores(logits, posterior)["squared_distance"]
    noise = float(np.mean(analysis.sampling_noise(posterior, raters)))
    assert found["sampling_noise"] == pytest.approx(noise, rel=0.03)
    assert found["squared_distance"] - expected == pytest.approx(noise, rel=0.05)
    assert found["squared_distance_corrected"] == pytest.approx(expected, rel=0.03)


def test_rounding_noise_is_what_rounding_adds():
    values = np.random.default_rng(3).random((20_000, 5))
    added = np.mean(np.sum((values - np.round(values, 2)) ** 2, axis=1))
    assert analysis.rounding_noise(5, 0.01) == pytest.approx(added, rel=0.02)


def test_what_is_no_posterior_is_refused(known):
    logits, posterior = known
    with pytest.raises(ValueError, match=r"\[20, 6\] has a row that is not a distribution: sum 1.1"):
        analysis.posterior_sums(logits, 1.1 * posterior)
    with pytest.raises(ValueError, match="not a distribution"):
        analysis.squared_distance(logits, posterior - np.eye(CLASSES)[0] + np.eye(CLASSES)[1])
    with pytest.raises(ValueError, match=r"\[20, 5\] beside logits \[20, 6\]"):
        analysis.posterior_sums(logits, posterior[:, :-1])
    with pytest.raises(ValueError, match="at least 2 for every example, not 1"):
        analysis.sampling_noise_estimate(posterior, np.r_[1, np.full(SIZE - 1, 3)])
    with pytest.raises(ValueError, match=r"raters must be a number or \[batch\], not \[3\]"):
        analysis.sampling_noise(posterior, [1, 2, 3])
    with pytest.raises(ValueError, match="step must be above 0"):
        analysis.rounding_noise(5, 0.0)


def test_a_posterior_in_bfloat16_is_a_distribution():
    """Rounding alone moves its rows' sums further from 1 than float32 rows are allowed to be."""
    rng = np.random.default_rng(0)
    exact = rng.dirichlet(np.ones(10), size=300)
    rounded = jnp.asarray(exact, jnp.bfloat16)
    assert np.abs(np.asarray(rounded, np.float64).sum(axis=1) - 1).max() > 1e-3
    logits = np.log(exact).astype(np.float32)
    assert analysis.posterior_scores(logits, rounded)["squared_distance"] < 1e-4
    with pytest.raises(ValueError, match="not a distribution"):
        analysis.posterior_scores(logits, rounded * 1.02)
