"""Statistics of replicated runs: means, paired differences, nested replication, a test set's error. Pure functions."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVELS = ("splits", "teachers", "seeds")  # of replication, from the outside in


class Interval(NamedTuple):
    """A mean and where it lies with 95 % confidence; infinite bounds where there is but one value.

    Attributes:
      mean: of the values.
      low: lower bound.
      high: upper bound.
      units: how many values there are.
    """

    mean: float
    low: float
    high: float
    units: int


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation (n - 1), None of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values.

    Args:
      values: at least one.
      level: of confidence, in (0, 1).
    """
    mean, std = mean_std(values)
    if std is None:
        return Interval(mean, -math.inf, math.inf, 1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def bootstrap_interval(values: Sequence[float], level: float = 0.95, *, draws: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), expanded as few values need it (Hesterberg 2015).

    No expansion helps fewer than six values: in over 5 % of all cases they are all on one side of the truth.

    Args:
      values: independent ones, at least one.
      level: of confidence, in (0, 1).
      draws: with replacement, of as many values as there are.
      seed: of the draws: the same values give the same interval.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, 1)
    picked = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picked].mean(axis=1), _expanded(len(values), level))
    return Interval(mean, float(low), float(high), len(values))


def _expanded(units: int, level: float) -> tuple[float, float]:
    """Quantiles as far out as Student's t is from the normal, and the sample's variance from its plug-in estimate."""
    from scipy.stats import norm, t

    tail = float(norm.cdf(math.sqrt(units / (units - 1)) * t.ppf(0.5 - level / 2, units - 1)))
    return tail, 1 - tail


def welch_interval(own: Sequence[float], base: Sequence[float], level: float = 0.95) -> Interval:
    """Welch's t interval (1947) of the difference of two means of independent values, with their own variances.

    Args:
      own: at least one.
      base: at least one.
      level: of confidence, in (0, 1).

    Returns:
      The interval of mean(own) - mean(base), `units` those of the fewer; infinite where either has but one value.
    """
    mean, units = float(np.mean(own) - np.mean(base)), min(len(own), len(base))
    if units < 2:
        return Interval(mean, -math.inf, math.inf, units)
    if np.ptp(own) == np.ptp(base) == 0:  # no freedom to speak of
        return Interval(mean, mean, mean, units)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are nearly alike
        low, high = ttest_ind(own, base, equal_var=False).confidence_interval(level)
    return Interval(mean, float(low), float(high), units)


def unpaired_bootstrap(
    own: Sequence[float], base: Sequence[float], level: float = 0.95, *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the difference of two means; either side is drawn on its own, both expanded as the fewer.

    Args:
      own, base, level: as `welch_interval` takes them.
      draws, seed: as `bootstrap_interval` takes them.
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


# What --interval may name -> (values) -> Interval, and of two rows without a seed in common (own, base) -> Interval.
INTERVALS = {"t": t_interval, "bootstrap": bootstrap_interval}
UNPAIRED = {"t": welch_interval, "bootstrap": unpaired_bootstrap}
# Fewest values of which an interval bounds anything: by chance six have one sign in 3 % of all cases, five in 6 %.
FEWEST = {"t": 2, "bootstrap": 6}


def nested_units(values: Mapping[tuple, float]) -> tuple[list[float], int]:
    """Takes nested replication to independent values: means of means at the outermost level with several places.

    Runs below one place share it and are no independent draws: students of one teacher, teachers of one data split.

    Args:
      values: (outermost, ..., innermost) -> value, keys of one length.

    Returns:
      The values, and the level that they are of, counted from 0, the outermost.
    """
    depth = len(next(iter(values)))
    for level in range(depth):
        places = list(dict.fromkeys(key[level] for key in values))
        if len(places) > 1 or level == depth - 1:
            return [_nested_mean(_below(values, level, place), level + 1) for place in places], level
    raise ValueError("keys of nested values need one part at least.")


def seed_means(values: Mapping[tuple, float]) -> list[float]:
    """Means over all splits and teachers of each seed, of (split, teachers' seeds, seed) -> value."""
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
    """Differences between runs that share data split, seed (initial weights, order) and, where both have any, teachers.

    Args:
      own: (split, teachers' seeds, seed) -> value; () for teachers' seeds without teachers.
      base: likewise; where one side has no teachers, its run of that split and seed stands beside all of the other's.

    Returns:
      A difference for every pair, by the teachers of the side that has some.
    """
    return {
        (split, teachers or t, seed): value - other
        for (split, teachers, seed), value in own.items()
        for (s, t, r), other in base.items()
        if (s, r) == (split, seed) and (t == teachers or not t or not teachers)
    }


def verdict(interval: Interval, test_error: float = 0.0, fewest: int = 2) -> str:
    """Returns 'gain', 'loss', 'within noise', or 'cannot tell' where nothing measures the noise.

    Args:
      interval: of a difference.
      test_error: its standard error that stems from the test set; 1.96 times as much is no gain either.
      fewest: values that such an interval needs, see FEWEST.
    """
    mean, low, high, units = interval
    if units < fewest or math.isclose(low, high, abs_tol=1e-9) or not math.isfinite(mean + test_error):
        return "cannot tell"
    if low <= 0 <= high or abs(mean) <= 1.96 * test_error:
        return "within noise"
    return "gain" if mean > 0 else "loss"


def binomial_error(accuracy: float, examples: float) -> float:
    """Standard error of an accuracy in [0, 1] that was measured on so many independent examples."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)


def bootstrap_error(correct: np.ndarray, *, draws: int = 1000, seed: int = 0) -> float:
    """Standard error of a mean over a test set's examples, which are drawn with replacement, all runs together.

    Args:
      correct: [runs, examples], whether each run is right, or what each run gains over another.
      draws: of as many examples as there are.
      seed: of the draws.
    """
    per_example = np.asarray(correct, np.float64).mean(axis=0)
    values, counts = np.unique(per_example, return_counts=True)  # examples that are alike are drawn together
    picked = np.random.default_rng(seed).multinomial(len(per_example), counts / len(per_example), draws)
    return float(np.std(picked @ values / len(per_example), ddof=1))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, NaN where either does not vary or there are fewer than three."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)
