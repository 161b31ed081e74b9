"""Calibration errors and proper scores against loops, scikit-learn and a perfectly calibrated forecaster."""

import jax
import numpy as np
import numpy_analysis as plain
import pytest
import scipy.optimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from kdjax import analysis
from kdjax.analysis.calibration import _bin_sums

SIZE, CLASSES = 200, 4


def generator(size, classes, seed=0, sharpness=2.0):
    """Returns logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(size, classes))
    cumulative = np.cumsum(plain.softmax(logits), axis=1)
    return logits, np.minimum((rng.random((size, 1)) > cumulative).sum(axis=1), classes - 1)


@pytest.fixture(scope="module")
def drawn():
    return generator(SIZE, CLASSES)


@pytest.fixture(scope="module")
def many():
    return generator(50_000, 5, seed=1)


def top(logits, labels):
    q = plain.softmax(logits)
    return q.max(axis=1), (q.argmax(axis=1) == labels).astype(float)


def test_scores_are_scikit_learns(drawn):
    logits, labels = drawn
    q, names = plain.softmax(logits), range(CLASSES)
    found = analysis.means(analysis.score_sums(logits, labels))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, q.argmax(axis=1)))
    assert found["nll"] == pytest.approx(log_loss(labels, q, labels=names), rel=1e-5)
    each = [brier_score_loss(labels == k, q[:, k]) for k in names]
    assert found["brier"] == pytest.approx(sum(each), rel=1e-5)
    assert found["confidence"] == pytest.approx(q.max(axis=1).mean(), rel=1e-5)
    assert found["entropy"] == pytest.approx(np.mean([plain.entropy(row) for row in q]), rel=1e-5)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("weighting", ["count", "bins"])
def test_ece_is_its_formula(drawn, bins, weighting):
    expected = plain.ece(*top(*drawn), bins, weighting == "count")
    assert analysis.ece(*drawn, bins=bins, weighting=weighting) == pytest.approx(expected, rel=1e-4)


def test_classwise_ece_is_the_mean_over_classes(drawn):
    logits, labels = drawn
    q = plain.softmax(logits)
    each = [plain.ece(q[:, k], (labels == k).astype(float), 10, True) for k in range(CLASSES)]
    assert analysis.classwise_ece(logits, labels) == pytest.approx(np.mean(each), rel=1e-4)


def test_reliability_is_scikit_learns_curve(drawn):
    confidence, correct = top(*drawn)
    curve = analysis.reliability(analysis.reliability_sums(*drawn))
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    filled = curve.count > 0
    np.testing.assert_allclose(curve.accuracy[filled], accuracy)
    np.testing.assert_allclose(curve.confidence[filled], mean, rtol=1e-5)
    assert np.isnan(curve.accuracy[~filled]).all() and not filled.all()
    assert curve.count.sum() == SIZE and curve.edges[[0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confidence_on_an_edge_lies_in_the_lower_bin(dtype):
    edges = np.array([0, *(np.arange(1, 11) / 10)], dtype)
    with jax.enable_x64(dtype is np.float64):
        table = _bin_sums(edges, np.ones(11, bool), np.ones(11, bool), bins=10)
        np.testing.assert_array_equal(table.count, [2, 1, 1, 1, 1, 1, 1, 1, 1, 1])
        above = _bin_sums(np.nextafter(edges, dtype(2)), np.ones(11, bool), np.ones(11, bool), bins=10)
        np.testing.assert_array_equal(above.count, [1, 1, 1, 1, 1, 1, 1, 1, 1, 2])


def test_bins_take_no_memory_each():
    shape = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((64, 32), bool)
    compiled = _bin_sums.lower(*shape, jax.ShapeDtypeStruct((64,), bool), bins=200).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 32 * 200 * 4


def test_adaptive_ece_is_its_formula_and_sees_no_order(drawn):
    confidence, correct = top(*drawn)
    order = np.argsort(confidence)
    parts = [np.arange(SIZE)[order][i : i + 20] for i in range(0, SIZE, 20)]
    expected = np.mean([abs(correct[part].mean() - confidence[part].mean()) for part in parts])
    assert analysis.adaptive_ece(*drawn) == pytest.approx(expected, rel=1e-4)
    tied = np.zeros((6, 2)), np.array([0, 0, 0, 0, 1, 1])
    assert analysis.adaptive_ece(*tied, bins=2) == analysis.adaptive_ece(tied[0], tied[1][::-1].copy(), bins=2)
    assert analysis.adaptive_ece(*tied, bins=4) == pytest.approx(4 / 6 - 1 / 2)
    assert np.isnan(analysis.adaptive_ece(*tied, np.zeros(6, bool)))


def test_a_perfect_forecaster_is_calibrated_and_a_sharpened_one_is_not(many):
    logits, labels = many
    for score in (analysis.ece, analysis.adaptive_ece, analysis.classwise_ece):
        assert score(logits, labels) < 0.008  # sampling error of a bin of 5000: 0.007
        assert score(3 * logits, labels) > 0.03
    parts = analysis.brier_decomposition(analysis.classwise_sums(logits, labels))
    assert parts["reliability"] < 2e-4 and parts["resolution"] > 0.2


def test_brier_is_the_sum_of_its_parts(drawn):
    logits, labels = drawn
    with jax.enable_x64(True):
        table = analysis.classwise_sums(logits, labels)
        brier = analysis.means(analysis.score_sums(logits, labels))["brier"]
    parts = analysis.brier_decomposition(table)
    assert parts["brier"] == pytest.approx(brier, abs=1e-12)
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bin"]
    assert whole == pytest.approx(brier, abs=1e-12)
    rates = np.bincount(labels, minlength=CLASSES) / SIZE
    assert parts["uncertainty"] == pytest.approx(np.sum(rates * (1 - rates)))


def test_brier_of_forecasts_that_are_constant_in_a_bin_is_murphys():
    p = np.repeat([0.85, 0.65], 50)
    logits = np.stack([np.log(p), np.log(1 - p)], axis=1)
    labels = (np.random.default_rng(0).random(100) > p).astype(int)
    parts = analysis.brier_decomposition(analysis.reliability_sums(logits, labels))
    y, groups = 1 - labels, [slice(0, 50), slice(50, 100)]
    assert parts["within_bin"] == pytest.approx(0, abs=1e-6)
    assert parts["brier"] == pytest.approx(brier_score_loss(y, p), rel=1e-5)
    expected = sum(50 * (p[g][0] - y[g].mean()) ** 2 for g in groups) / 100
    assert parts["reliability"] == pytest.approx(expected, rel=1e-4)
    expected = sum(50 * (y[g].mean() - y.mean()) ** 2 for g in groups) / 100
    assert parts["resolution"] == pytest.approx(expected, rel=1e-5)
    empty = analysis.brier_decomposition(analysis.reliability_sums(logits, labels, np.zeros(100, bool)))
    assert np.isnan(list(empty.values())).all()


def test_the_temperature_is_where_the_derivative_is_zero(drawn):
    logits, labels = drawn
    own = logits[np.arange(SIZE), labels]

    def slope(beta):
        return np.mean(np.sum(plain.softmax(beta * logits) * logits, axis=1) - own)

    expected = 1 / scipy.optimize.brentq(slope, 1e-3, 1e3, xtol=1e-14)
    found = analysis.fit_temperature(logits, labels)
    assert found == pytest.approx(expected, rel=1e-6) and found == analysis.fit_temperature(logits, labels)
    assert analysis.fit_temperature(3 * logits + 7, labels) == pytest.approx(3 * found, rel=1e-6)
    mask = np.arange(SIZE) < 100
    padded = np.where(mask[:, None], logits, np.nan), np.where(mask, labels, -1)
    assert analysis.fit_temperature(*padded, mask) == analysis.fit_temperature(logits[:100], labels[:100])


def test_the_temperature_of_a_perfect_forecaster_is_one(many):
    logits, labels = many
    assert analysis.fit_temperature(logits, labels) == pytest.approx(1, abs=0.02)
    assert analysis.ece(3 * logits / analysis.fit_temperature(3 * logits, labels), labels) < 0.008


def test_the_temperature_stays_within_its_bounds(drawn):
    logits, _ = drawn
    assert analysis.fit_temperature(logits, logits.argmax(axis=1)) == pytest.approx(0.01)
    assert analysis.fit_temperature(logits, logits.argmin(axis=1), bounds=(0.5, 20)) == pytest.approx(20)
    with pytest.raises(ValueError, match="0 < least < largest"):
        analysis.fit_temperature(logits, logits.argmin(axis=1), bounds=(2, 1))
    with pytest.raises(ValueError, match=r"\[200, 4\], all masked"):
        analysis.fit_temperature(logits, logits.argmin(axis=1), np.zeros(SIZE, bool))


def test_there_is_no_temperature_where_none_gives_a_finite_nll(drawn):
    logits, labels = (each.copy() for each in drawn)
    never = logits.copy()
    never[3, (labels[3] + 1) % CLASSES] = -np.inf  # a class that is ruled out
    assert np.isfinite(analysis.fit_temperature(never, labels))
    never[3, labels[3]] = -np.inf
    logits[3] = np.nan
    assert np.isnan(analysis.fit_temperature(never, labels)) and np.isnan(analysis.fit_temperature(logits, labels))


def test_all_by_name(drawn):
    found = analysis.calibration_scores(*drawn)
    assert found["ece"] == analysis.ece(*drawn) and found["ece_classwise"] == analysis.classwise_ece(*drawn)
    assert found["reference_code_ece"] == analysis.ece(*drawn, weighting="bins")
    assert found["ece_adaptive"] == analysis.adaptive_ece(*drawn)
    assert found.keys() > {"accuracy", "confidence", "nll", "brier", "entropy"}


def test_what_cannot_be_is_refused(drawn):
    logits, labels = drawn
    with pytest.raises(ValueError, match="bins must be an integer, at least 1, not 0"):
        analysis.ece(logits, labels, bins=0)
    with pytest.raises(ValueError, match="'count', 'bins', not 'mass'"):
        analysis.ece(logits, labels, weighting="mass")
    with pytest.raises(ValueError, match=r"float64 \[200\]|float32 \[200\]"):
        analysis.ece(logits, labels.astype(float))
    empty = analysis.reliability_sums(logits, labels, np.zeros(SIZE, bool))
    assert np.isnan(analysis.calibration_error(empty)) and np.isnan(analysis.calibration_error(empty, "bins"))


def test_a_temperature_stays_within_its_bounds():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    for bounds in ((0.01, 100.0), (0.07, 7.3)):
        for labels, bound in ((np.array([1, 0]), bounds[1]), (np.array([0, 1]), bounds[0])):
            found = analysis.fit_temperature(logits, labels, bounds=bounds)
            assert bounds[0] <= found <= bounds[1] and found == pytest.approx(bound)
