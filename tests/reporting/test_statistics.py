"""Statistics of replicated runs, against scipy and by laws."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from kdjax.reporting import statistics
from kdjax.reporting.statistics import Interval

RNG = np.random.default_rng(0)
VALUES = RNG.normal(0.3, 1.0, 12)


def test_t_interval_is_scipys():
    mean, low, high, units = statistics.t_interval(VALUES)
    expected = scipy.stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean, low, high, units], [VALUES.mean(), *expected, 12])


def test_welch_interval_is_scipys():
    own, base = VALUES, RNG.normal(0.0, 3.0, 5)
    expected = scipy.stats.ttest_ind(own, base, equal_var=False).confidence_interval(0.95)
    mean, low, high, units = statistics.welch_interval(own, base)
    np.testing.assert_allclose([mean, low, high], [own.mean() - base.mean(), *expected])
    assert units == 5


@pytest.mark.filterwarnings("error")
def test_nearly_equal_accuracies_raise_no_warning():
    alike = [100 * 0.7, 100 * 0.7 + 1e-14, 100 * 0.7]
    mean, low, high, _ = statistics.welch_interval(alike, VALUES)
    assert low < mean < high
    assert statistics.verdict(statistics.t_interval(np.subtract(alike, 60))) == "cannot tell"


def test_bootstrap_approaches_the_normal_interval_for_many_values():
    many, others = RNG.normal(size=400), RNG.normal(1, 2, size=300)
    _, low, high, _ = statistics.bootstrap_interval(many)
    half = 1.96 * many.std() / 20
    np.testing.assert_allclose([low, high], [many.mean() - half, many.mean() + half], atol=0.01)
    _, low, high, _ = statistics.unpaired_bootstrap(many, others)
    mean, half = many.mean() - others.mean(), 1.96 * math.hypot(many.std() / 20, others.std() / math.sqrt(300))
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.03)


def test_bootstrap_of_few_values_has_its_nominal_error_rate():
    """The values have mean 0, and the plain percentile bootstrap calls 11 % of eight values a gain or a loss."""
    random, trials = np.random.default_rng(1), 1000
    for units, most in ((8, 0.08), (2, 0.0)):
        values = random.normal(size=(trials, units))
        found = [statistics.bootstrap_interval(each, draws=1000) for each in values]
        said = [statistics.verdict(each, fewest=statistics.FEWEST["bootstrap"]) for each in found]
        assert np.mean(np.isin(said, ["gain", "loss"])) <= most
        assert (said[0] == "cannot tell") == (units < 6)


@pytest.mark.parametrize("name", statistics.INTERVALS)
def test_one_value_has_infinite_bounds_and_shifted_values_a_shifted_interval(name):
    interval, unpaired = statistics.INTERVALS[name], statistics.UNPAIRED[name]
    assert interval([2.0]) == Interval(2.0, -math.inf, math.inf, 1)
    assert unpaired([2.0], [1.0, 3.0])[1:3] == (-math.inf, math.inf)
    np.testing.assert_allclose(np.add(interval(VALUES)[:3], 5.0), interval(VALUES + 5)[:3])
    np.testing.assert_allclose(unpaired(VALUES + 5, VALUES[:4] + 5)[:3], unpaired(VALUES, VALUES[:4])[:3])
    np.testing.assert_allclose(interval(np.full(4, 0.7))[:3], 0.7)
    np.testing.assert_allclose(unpaired(np.full(4, 0.7), np.full(3, 0.5))[:3], 0.2)


def test_students_of_one_teacher_are_not_independent():
    """Copying each teacher's student changes neither the values nor their interval."""
    one = {(0, teacher, 0): float(teacher**2) for teacher in range(4)}
    copies = {(0, teacher, seed): float(teacher**2) for teacher in range(4) for seed in range(50)}
    assert statistics.nested_units(copies) == statistics.nested_units(one) == ([0.0, 1.0, 4.0, 9.0], 1)


def test_units_are_means_at_the_outermost_level_that_varies():
    keys = list(itertools.product(range(2), range(3), range(4)))
    values = {key: 100.0 * key[0] + 10 * key[1] + key[2] for key in keys}
    assert statistics.nested_units(values) == ([11.5, 111.5], 0)
    one_split = {key: value for key, value in values.items() if key[0] == 0}
    assert statistics.nested_units(one_split) == ([1.5, 11.5, 21.5], 1)
    one_teacher = {key: value for key, value in one_split.items() if key[1] == 2}
    assert statistics.nested_units(one_teacher) == ([20.0, 21.0, 22.0, 23.0], 2)
    uneven = {**one_split, (0, 0, 9): 1.5, (0, 0, 10): 1.5}
    assert statistics.nested_units(uneven)[0] == pytest.approx([1.5, 11.5, 21.5])


def test_differences_pair_split_seed_and_teachers_if_both_have_teachers():
    own = {(0, (7,), 1): 5.0, (0, (8,), 1): 6.0, (0, (7,), 2): 9.0}
    alone = {(0, (), 1): 4.0, (1, (), 1): 0.0}
    assert statistics.paired_differences(own, alone) == {(0, (7,), 1): 1.0, (0, (8,), 1): 2.0}
    other = {(0, (7,), 1): 1.0, (0, (9,), 1): 2.0}
    assert statistics.paired_differences(own, other) == {(0, (7,), 1): 4.0}
    assert statistics.paired_differences(own, own) == dict.fromkeys(own, 0.0)
    # If the baseline has the teachers, the differences are over its teachers.
    turned = {key: -value for key, value in statistics.paired_differences(own, alone).items()}
    assert statistics.paired_differences(alone, own) == turned


@pytest.mark.parametrize(
    "interval, said",
    [
        (Interval(1.0, 0.5, 1.5, 5), "gain"),
        (Interval(-1.0, -1.5, -0.5, 5), "loss"),
        (Interval(1.0, -0.1, 2.1, 5), "within noise"),
        (Interval(1.0, 0.0, 2.0, 5), "within noise"),
        (Interval(1.0, -math.inf, math.inf, 1), "cannot tell"),
        (Interval(1.0, 1.0, 1.0, 3), "cannot tell"),  # the same run repeated
        (Interval(math.nan, math.nan, math.nan, 3), "cannot tell"),
    ],
)
def test_verdict(interval, said):
    assert statistics.verdict(interval) == said


def test_the_error_of_the_test_set_is_added_in_quadrature():
    """The error of a sum of two independent normal parts is what NumPy draws."""
    widened = statistics.with_test_error(Interval(1.0, 0.2, 1.5, 5), 0.6 / 1.959964)
    assert widened[:3] == pytest.approx((1.0, 1.0 - math.hypot(0.8, 0.6), 1.0 + math.hypot(0.5, 0.6)))
    assert statistics.with_test_error(Interval(1.0, 0.5, 1.5, 5), 0.0) == Interval(1.0, 0.5, 1.5, 5)
    drawn = np.random.default_rng(0).normal(size=(2, 200_000)) * [[0.3], [0.4]]
    half = statistics.with_test_error(Interval(0.0, -1.959964 * 0.3, 1.959964 * 0.3, 5), 0.4).high
    assert np.mean(np.abs(drawn.sum(axis=0)) <= half) == pytest.approx(0.95, abs=0.002)


def test_the_bootstrap_error_is_binomial_for_one_run_and_smaller_for_runs_with_independent_errors():
    right = RNG.random((1, 2000)) < 0.8
    binomial = statistics.binomial_error(right.mean(), 2000)
    assert statistics.bootstrap_error(right) == pytest.approx(binomial, rel=0.1)
    apart = RNG.random((9, 2000)) < 0.8
    assert statistics.bootstrap_error(apart) == pytest.approx(binomial / 3, rel=0.15)
    alike = np.repeat(right, 9, axis=0)
    assert statistics.bootstrap_error(alike) == statistics.bootstrap_error(right)
    assert statistics.bootstrap_error(np.ones((2, 10))) == 0


def test_spearman_is_scipys_and_nan_without_variation():
    x, y = RNG.normal(size=20), RNG.normal(size=20)
    assert statistics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert statistics.spearman(x, np.exp(x)) == pytest.approx(1)
    assert math.isnan(statistics.spearman(x, np.ones(20))) and math.isnan(statistics.spearman(x[:2], y[:2]))
