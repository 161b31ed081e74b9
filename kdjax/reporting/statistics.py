"""Statistics of replicated runs: intervals, paired differences, nested replication, the error of a finite test set."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVELS = ("splits", "teachers", "seeds")  # levels of nested replication, the outermost first


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval; the bounds are infinite for a single value.

    Attributes:
      mean: Mean of the values.
      low: Lower bound.
      high: Upper bound.
      units: Number of values.
    """

    mean: float
    low: float
    high: float
    units: int


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation (with n - 1), which is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns Student's t interval of the mean of independent values.

    Args:
      values: Independent values, at least one.
      level: Confidence level, in (0, 1).
    """
    mean, std = mean_std(values)
    if std is None:
        return Interval(mean, -math.inf, math.inf, 1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def difference_interval(
    values: Sequence[float], level: float = 0.95, *, test_error: float = 0.0, overlap: float = 0.0
) -> Interval:
    """Returns Student's t interval of the mean of paired differences that share test images.

    Args:
      values: A difference of each seed, at least one.
      level: Confidence level, in (0, 1).
      test_error: Standard error of the mean difference due to the test images that all seeds share, see
        `bootstrap_error`. It is added in quadrature at the same level.
      overlap: Test examples per training example where each seed draws both anew from the same examples; 0 where the
        test examples of two seeds are independent, or the same. Drawn so, seeds share most of their training examples,
        and the variance of their mean is (1 / n + overlap) times that of a value in place of 1 / n (Nadeau & Bengio
        2003, "Inference for the Generalization Error").
    """
    mean, std = mean_std(values)
    if std is None:
        return Interval(mean, -math.inf, math.inf, 1)
    from scipy.stats import norm, t

    own = float(t.ppf(0.5 + level / 2, len(values) - 1)) * std * math.sqrt(1 / len(values) + overlap)
    half = math.hypot(own, float(norm.ppf(0.5 + level / 2)) * test_error)
    return Interval(mean, mean - half, mean + half, len(values))


def widened(interval: Interval, overlap: float) -> Interval:
    """Returns an interval over splits that redraw the same examples, with the width that their overlap asks for.

    Args:
      interval: Interval of the mean of values of independent splits.
      overlap: Test examples per training example; 0 leaves the interval as it is. See `difference_interval`.
    """
    mean, low, high, units = interval
    if not overlap or units < 2:
        return interval
    factor = math.sqrt(1 + units * overlap)
    return Interval(mean, mean - factor * (mean - low), mean + factor * (high - mean), units)


def bootstrap_interval(values: Sequence[float], level: float = 0.95, *, draws: int = 10_000, seed: int = 0) -> Interval:
    """Returns the percentile bootstrap interval of the mean (Efron 1979), expanded for few values (Hesterberg 2015).

    Expansion does not help with fewer than six values: in more than 5 % of all cases they all lie on one side of the
    true mean.

    Args:
      values: Independent values, at least one.
      level: Confidence level, in (0, 1).
      draws: Number of bootstrap samples.
      seed: Seed of the samples, so that the same values give the same interval.
    """
    sample = np.asarray(values, np.float64)
    mean, units = float(sample.mean()), len(sample)
    if units < 2:
        return Interval(mean, -math.inf, math.inf, 1)
    picked = np.random.default_rng(seed).integers(0, units, (draws, units))
    low, high = np.quantile(sample[picked].mean(axis=1), _expanded(units, level))
    return Interval(mean, float(low), float(high), units)


def _expanded(units: int, level: float) -> tuple[float, float]:
    """Returns the quantiles of the expanded percentile interval (Hesterberg 2015).

    They are further out than those of `level`, as Student's t is wider than the normal distribution and the unbiased
    variance is larger than the plug-in estimate.
    """
    from scipy.stats import norm, t

    tail = float(norm.cdf(math.sqrt(units / (units - 1)) * t.ppf(0.5 - level / 2, units - 1)))
    return tail, 1 - tail


def welch_interval(own: Sequence[float], base: Sequence[float], level: float = 0.95) -> Interval:
    """Returns Welch's t interval (1947) of the difference of two means, without assuming equal variances.

    Args:
      own: Independent values, at least one.
      base: Independent values to compare with, at least one.
      level: Confidence level, in (0, 1).

    Returns:
      The interval of mean(own) - mean(base). `units` is the smaller number of values; the bounds are infinite if it
      is 1.
    """
    mean, units = float(np.mean(own) - np.mean(base)), min(len(own), len(base))
    if units < 2:
        return Interval(mean, -math.inf, math.inf, units)
    if np.ptp(own) == np.ptp(base) == 0:  # Welch's degrees of freedom are 0 / 0
        return Interval(mean, mean, mean, units)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about values that are nearly equal
        low, high = ttest_ind(own, base, equal_var=False).confidence_interval(level)
    return Interval(mean, float(low), float(high), units)


def unpaired_bootstrap(
    own: Sequence[float], base: Sequence[float], level: float = 0.95, *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the percentile bootstrap interval of the difference of two means, whose samples are independent.

    Args:
      own: Independent values, at least one.
      base: Independent values to compare with, at least one.
      level: Confidence level, in (0, 1).
      draws: Number of bootstrap samples.
      seed: Seed of the samples.

    Returns:
      The interval of mean(own) - mean(base), expanded for the smaller number of values.
    """
    mean, units = float(np.mean(own) - np.mean(base)), min(len(own), len(base))
    if units < 2:
        return Interval(mean, -math.inf, math.inf, units)
    random = np.random.default_rng(seed)
    first, second = (
        np.asarray(values, np.float64)[random.integers(0, len(values), (draws, len(values)))].mean(axis=1)
        for values in (own, base)
    )
    low, high = np.quantile(first - second, _expanded(units, level))
    return Interval(mean, float(low), float(high), units)


# Value of --interval -> function of paired differences, and function of two rows without a seed in common.
INTERVALS = {"t": t_interval, "bootstrap": bootstrap_interval}
UNPAIRED = {"t": welch_interval, "bootstrap": unpaired_bootstrap}
# Smallest number of values for a valid interval. Six values have the same sign by chance in 3 % of all cases, five in
# 6 %, and then a bootstrap interval excludes zero.
FEWEST = {"t": 2, "bootstrap": 6}


def nested_units(values: Mapping[tuple, float]) -> tuple[list[float], int]:
    """Reduces nested replication to independent values: means at the outermost level that varies.

    Runs that share a teacher or a data split are not independent; their mean is taken first, level by level.

    Args:
      values: Key (outermost level, ..., innermost level) -> value; all keys have the same length.

    Returns:
      The independent values, and the level that they are at, 0 for the outermost.

    Raises:
      ValueError: The keys are empty.
    """
    depth = len(next(iter(values)))
    for level in range(depth):
        places = list(dict.fromkeys(key[level] for key in values))
        if len(places) > 1 or level == depth - 1:
            return [_nested_mean(_below(values, level, place), level + 1) for place in places], level
    raise ValueError("the keys of nested values need at least one level.")


def seed_means(values: Mapping[tuple, float]) -> list[float]:
    """Returns the mean over splits and teachers for each seed.

    Args:
      values: Key (split, seeds of the teachers, seed) -> value.
    """
    seeds = dict.fromkeys(seed for _, _, seed in values)
    return [float(np.mean([value for key, value in values.items() if key[2] == seed])) for seed in seeds]


def _below(values: Mapping[tuple, float], level: int, place: object) -> dict[tuple, float]:
    return {key: value for key, value in values.items() if key[level] == place}


def _nested_mean(values: Mapping[tuple, float], level: int) -> float:
    if level >= len(next(iter(values))):
        return float(np.mean(list(values.values())))
    places = dict.fromkeys(key[level] for key in values)
    return float(np.mean([_nested_mean(_below(values, level, place), level + 1) for place in places]))


def paired_differences(own: Mapping[tuple, float], base: Mapping[tuple, float]) -> dict[tuple, float]:
    """Returns the differences between runs that share data split, seed and, if both have teachers, teachers.

    Args:
      own: Key (split, seeds of the teachers, seed) -> value; the second is () for a run without teachers.
      base: Values to subtract, with the same keys. If one side has no teachers, its run of a split and seed is paired
        with every run of the other side of that split and seed.

    Returns:
      Key -> difference for every pair; the key has the teachers of the side that has some.
    """
    return {
        (split, teachers or t, seed): value - other
        for (split, teachers, seed), value in own.items()
        for (s, t, r), other in base.items()
        if (s, r) == (split, seed) and (t == teachers or not t or not teachers)
    }


def with_test_error(interval: Interval, test_error: float) -> Interval:
    """Returns an interval to which the error due to the test set is added in quadrature, on either side.

    Args:
      interval: Interval of a mean difference over runs.
      test_error: Standard error of that mean due to the test examples.
    """
    more = 1.959964 * test_error
    low, high = (math.hypot(interval.mean - bound, more) for bound in (interval.low, interval.high))
    return interval._replace(low=interval.mean - low, high=interval.mean + high)


def has_no_width(interval: Interval) -> bool:
    """Returns whether both bounds are equal, as those of equal values are, up to rounding."""
    return math.isclose(interval.low, interval.high, abs_tol=1e-9)


def verdict(interval: Interval, fewest: int = 2) -> str:
    """Returns 'gain', 'loss', 'within noise', or 'cannot tell' if there is no estimate of the noise.

    Args:
      interval: Interval of a difference.
      fewest: Smallest number of values for such an interval, see FEWEST.
    """
    mean, low, high, units = interval
    if units < fewest or has_no_width(interval) or not math.isfinite(mean):
        return "cannot tell"
    if low <= 0 <= high:
        return "within noise"
    return "gain" if mean > 0 else "loss"


def binomial_error(accuracy: float, examples: float) -> float:
    """Returns the standard error of an accuracy in [0, 1] that was measured on a number of independent examples."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)


def bootstrap_error(correct: np.ndarray, *, draws: int = 1000, seed: int = 0) -> float:
    """Returns the standard error of a mean over test examples, by bootstrap over the examples.

    Args:
      correct: Whether each run is right, or its gain over another run [runs, examples].
      draws: Number of bootstrap samples; a sample draws the same examples for all runs.
      seed: Seed of the samples.
    """
    per_example = np.asarray(correct, np.float64).mean(axis=0)
    values, counts = np.unique(per_example, return_counts=True)  # equal values are drawn together, which is faster
    picked = np.random.default_rng(seed).multinomial(len(per_example), counts / len(per_example), draws)
    return float(np.std(picked @ values / len(per_example), ddof=1))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, NaN if either does not vary or there are fewer than three values."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)
