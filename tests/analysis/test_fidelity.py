"""Agreement of two networks against scikit-learn and SciPy, and of a network with itself."""

import jax
import numpy as np
import numpy_analysis as plain
import pytest
import scipy.special
from sklearn.metrics import accuracy_score, confusion_matrix, mutual_info_score

from kdjax import analysis

SIZE, CLASSES = 40, 5


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    first = 2 * rng.normal(size=(SIZE, CLASSES))
    return first, first + rng.normal(size=(SIZE, CLASSES)), rng.integers(0, CLASSES, SIZE)


def expected_scores(first, second):
    p, q = plain.softmax(first), plain.softmax(second)
    a, b = first.argmax(axis=1), second.argmax(axis=1)
    return {
        "agreement": accuracy_score(a, b),
        "kl_first_second": scipy.special.rel_entr(p, q).sum(axis=1).mean(),
        "kl_second_first": scipy.special.rel_entr(q, p).sum(axis=1).mean(),
        "total_variation": np.mean(np.abs(p - q).sum(axis=1) / 2),
        "entropy_first": scipy.special.entr(p).sum(axis=1).mean(),
        "entropy_second": scipy.special.entr(q).sum(axis=1).mean(),
        "mutual_information": mutual_info_score(a, b),
    }


def test_each_is_its_formula(runs):
    first, second, _ = runs
    with jax.enable_x64(True):
        assert analysis.fidelity_scores(first, second) == pytest.approx(expected_scores(first, second), abs=1e-12)
    assert analysis.fidelity_scores(first, second) == pytest.approx(expected_scores(first, second), rel=1e-4)


def test_by_class_is_each_class_alone(runs):
    first, second, labels = runs
    labels = np.where(labels == 3, 2, labels)
    found = analysis.fidelity_scores(first, second, labels=labels)
    for label in (0, 1, 2, 4):
        expected = expected_scores(first[labels == label], second[labels == label])
        for name in expected.keys() - {"mutual_information"}:
            assert found[f"{name}_by_class"][label] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert np.isnan(found["agreement_by_class"][3])
    without = {name: value for name, value in found.items() if not name.endswith("_by_class")}
    assert without == pytest.approx(analysis.fidelity_scores(first, second), rel=1e-6)


def test_a_run_agrees_with_itself(runs):
    found = analysis.fidelity_scores(runs[0], runs[0])
    assert found["agreement"] == 1
    assert found["kl_first_second"] == found["kl_second_first"] == found["total_variation"] == 0
    assert found["entropy_first"] == found["entropy_second"]
    assert found["mutual_information"] == pytest.approx(mutual_info_score(*[runs[0].argmax(axis=1)] * 2))


def test_a_class_that_is_masked_out_plays_no_part(runs):
    masked = [np.where(np.arange(CLASSES) == 0, -np.inf, run) for run in runs[:2]]
    found = analysis.fidelity_scores(*masked)
    assert found == pytest.approx(analysis.fidelity_scores(*(run[:, 1:] for run in runs[:2])), rel=1e-5)


def test_extreme_logits_give_finite_totals():
    logits = np.array([[1e4, 0, 0], [0, -1e4, 0], [-1e4, 0, 1e4]])
    found = analysis.fidelity_scores(logits, np.roll(logits, 1, axis=1))
    assert np.isfinite(list(found.values())).all()


def test_an_ensemble_of_one_is_the_run_and_its_two_means_differ(runs):
    first, second, _ = runs
    np.testing.assert_allclose(analysis.ensemble([first]), first, rtol=1e-6)
    np.testing.assert_allclose(analysis.ensemble([first, second]), (first + second) / 2, rtol=1e-5, atol=1e-6)
    mean = (plain.softmax(first) + plain.softmax(second)) / 2
    np.testing.assert_allclose(plain.softmax(np.asarray(analysis.ensemble([first, second], "probs"))), mean, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\['\[40, 5\]', '\[39, 5\]'\]"):
        analysis.ensemble([first, second[1:]])
    with pytest.raises(ValueError, match="'logits', 'probs', not 'votes'"):
        analysis.ensemble([first], by="votes")
    with pytest.raises(ValueError, match="of one shape"):
        analysis.ensemble([])


def test_label_pairs_are_a_confusion_matrix(runs):
    first, second, _ = runs
    expected = confusion_matrix(first.argmax(axis=1), second.argmax(axis=1), labels=range(CLASSES))
    np.testing.assert_array_equal(analysis.label_pairs(first, second), expected)


def test_mutual_information_of_equal_labels_is_their_entropy():
    table = np.diag([5, 3, 0, 2])
    for correction in ("none", "miller_madow"):
        entropy = analysis.label_entropy([5, 3, 0, 2], correction)
        assert analysis.mutual_information(table, correction) == pytest.approx(entropy)
    assert analysis.label_entropy([5, 3, 0, 2]) == pytest.approx(plain.entropy([0.5, 0.3, 0.2]))
    assert entropy == pytest.approx(plain.entropy([0.5, 0.3, 0.2]) + 2 / 20)
    assert np.isnan(analysis.mutual_information(np.zeros((2, 2))))


def test_independent_labels_have_none_once_corrected():
    rng = np.random.default_rng(0)
    classes, size, sets = 10, 2000, 20
    tables = [np.histogram2d(*rng.integers(0, classes, (2, size)), bins=classes)[0] for _ in range(sets)]
    plug_in = [analysis.mutual_information(table) for table in tables]
    corrected = [analysis.mutual_information(table, "miller_madow") for table in tables]
    bias = (classes - 1) ** 2 / (2 * size)
    # 2N times the plug-in value is chi-squared with (classes - 1)^2 degrees of freedom.
    error = 4 * np.sqrt(2) * (classes - 1) / (2 * size) / np.sqrt(sets)
    assert np.mean(plug_in) == pytest.approx(bias, abs=error)
    assert np.mean(corrected) == pytest.approx(0, abs=error)


def test_information_by_class_averages_to_the_mutual_information():
    table = np.random.default_rng(1).integers(0, 9, (4, 4))
    table[2] = 0
    shares = table.sum(axis=1) / table.sum()
    found = analysis.information_by_class(table)
    assert np.isnan(found[2])
    assert np.nansum(shares * found) == pytest.approx(analysis.mutual_information(table))
    assert found[0] == pytest.approx(plain.kl(table[0] / table[0].sum(), table.sum(axis=0) / table.sum()))
    with pytest.raises(ValueError, match=r"not \[4\]"):
        analysis.information_by_class(table[0])


def test_as_the_reference_code(runs):
    first, second, _ = runs
    totals = analysis.reference_code_kl_sums(first, second)
    expected = 10 * expected_scores(first, second)["kl_second_first"]
    assert analysis.means(totals)["reference_code_kl"] == pytest.approx(expected, rel=1e-5)
    batches = [slice(0, 16), slice(16, 32), slice(32, 40)]
    totals = analysis.add(*(analysis.reference_code_mutual_information_sums(first[b], second[b]) for b in batches))
    each = [mutual_info_score(first[b].argmax(axis=1), second[b].argmax(axis=1)) for b in batches]
    found = analysis.means(totals)["reference_code_mutual_information"]
    assert found == pytest.approx(np.average(each, weights=[16, 16, 8]))
    assert found > analysis.fidelity_scores(first, second)["mutual_information"]
    empty = analysis.reference_code_mutual_information_sums(first, second, np.zeros(SIZE, bool))
    assert empty["reference_code_mutual_information"] == (0.0, 0)


def test_shapes_are_printed(runs):
    with pytest.raises(ValueError, match=r"first_logits \[40, 5\] and second_logits \[40, 4\]"):
        analysis.fidelity_sums(runs[0], runs[1][:, 1:])
    with pytest.raises(ValueError, match="'none', 'miller_madow', not 'jackknife'"):
        analysis.mutual_information(np.eye(2), "jackknife")
