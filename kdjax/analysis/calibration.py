"""Calibration: whether predicted probabilities match frequencies, proper scores, and temperature scaling.

A bin is (a, b], so a confidence on an edge lies in the lower bin; a confidence of 0 lies in the first. Edges and
confidences are compared in one precision, so that rounding cannot move a confidence across an edge.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import losses
from kdjax.analysis._checks import as_labels, as_logits, check_choice, check_count, show
from kdjax.analysis.sums import divide, in_parts, means, totals

BINS = 10  # default number of bins


class Bins(NamedTuple):
    """Totals by bin of a probability p and an outcome y in {0, 1}; they add over batches and devices.

    Attributes:
      count: Number of examples [..., bins], integers.
      predicted: Sum of p [..., bins].
      observed: Sum of y [..., bins], integers.
      predicted_squared: Sum of p^2 [..., bins].
      both: Sum of p y [..., bins].
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # the field's name; tuple.count is not used
    predicted: Array
    observed: Array
    predicted_squared: Array
    both: Array


class Reliability(NamedTuple):
    """The contents of a reliability diagram.

    Attributes:
      edges: Edges of the bins [bins + 1], from 0 to 1.
      count: Number of examples [..., bins], integers.
      confidence: Mean p [..., bins]; NaN in an empty bin.
      accuracy: Mean y [..., bins]; NaN in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]  # a name in stored analyses
    confidence: np.ndarray
    accuracy: np.ndarray


def score_sums(logits: Array, labels: Array, mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Returns a batch's totals of the scores of single examples; they add over batches and devices.

    Args:
      logits: Logits [batch, classes].
      labels: Integer labels [batch] in [0, classes).
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      Mapping of name -> (sum, count), which `means` turns into means: 'accuracy'; 'confidence', the largest
      probability; 'nll' in nats; 'brier' sum_k (q_k - y_k)^2 in [0, 2]; 'entropy' in nats.

    Raises:
      ValueError: The shapes do not match, or a label is not a class.
    """
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    return totals(_scores(logits, labels), mask)


def reliability_sums(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> Bins:
    """Returns a batch's totals by bin of the largest probability; the outcome is whether its class is the label.

    Args:
      logits: Logits [batch, classes].
      labels: Integer labels [batch] in [0, classes).
      mask: Mask [batch] of the examples that count; None counts all.
      bins: Number of equal-width bins of [0, 1], at least 1.

    Returns:
      Bins, each [bins].

    Raises:
      ValueError: The shapes do not match, a label is not a class, or there is no bin.
    """
    check_count("bins", bins)
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    return _bin_sums(*_top(logits, labels), mask, bins=bins)


def classwise_sums(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> Bins:
    """Returns a batch's totals by bin of every class's probability; the outcome is whether that class is the label.

    Args:
      logits: Logits [batch, classes].
      labels: Integer labels [batch] in [0, classes).
      mask: Mask [batch] of the examples that count; None counts all.
      bins: Number of equal-width bins of [0, 1], at least 1.

    Returns:
      Bins, each [classes, bins].

    Raises:
      ValueError: The shapes do not match, a label is not a class, or there is no bin.
    """
    check_count("bins", bins)
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    is_label = labels[:, None] == jnp.arange(logits.shape[1])
    return _bin_sums(jax.nn.softmax(logits), is_label, mask, bins=bins)


def reliability(table: Bins) -> Reliability:
    """Returns the contents of a reliability diagram from the totals of a whole set.

    Args:
      table: Bins, each [..., bins], from `reliability_sums` or `classwise_sums`.

    Returns:
      Reliability, means by bin in float64.
    """
    bins = np.shape(table.count)[-1]
    confidence, accuracy = divide(table.predicted, table.count), divide(table.observed, table.count)
    return Reliability(np.linspace(0, 1, bins + 1), np.asarray(table.count, np.int64), confidence, accuracy)


def calibration_error(table: Bins, weighting: str = "count") -> float:
    """Returns the mean over bins of |accuracy - confidence|, averaged over classes if the totals are by class.

    Args:
      table: Bins, each [bins] from `reliability_sums`, or [classes, bins] from `classwise_sums`.
      weighting: 'count' weights a bin by its number of examples (Guo et al., 2017; by class, Kull et al., 2019). 'bins'
        weights all bins equally and counts an empty one as 0, as the code of Guo et al. (2024) does.

    Returns:
      Error in [0, 1]; NaN for an empty table.

    Raises:
      ValueError: The weighting is another word.

    References:
      Guo, Pleiss, Sun & Weinberger, 2017, "On Calibration of Modern Neural Networks", eq. 3,
      https://arxiv.org/abs/1706.04599
      Guo, Zhong, Liu, Feng & Ma, 2024, "Why Does Knowledge Distillation Work? Rethink Its Attention and Fidelity
      Mechanism", https://arxiv.org/abs/2405.00739
    """
    check_choice("weighting", weighting, ("count", "bins"))
    count, predicted, observed = (np.asarray(part, np.float64) for part in table[:3])
    sizes = count.sum(axis=-1, keepdims=True)
    if weighting == "count":
        errors = np.sum(divide(np.abs(observed - predicted), sizes), axis=-1)
    else:
        gaps = np.where(count > 0, np.abs(divide(observed - predicted, count)), 0)
        errors = np.where(sizes[..., 0] > 0, np.mean(gaps, axis=-1), np.nan)
    return float(np.mean(errors))


def ece(
    logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS, weighting: str = "count"
) -> float:
    """Returns the expected calibration error of whole arrays.

    Its bias is positive, of about the size of the sampling error of the bins.

    Args:
      logits: Logits [examples, classes].
      labels: Integer labels [examples] in [0, classes).
      mask: Mask [examples] of the examples that count; None counts all.
      bins: Number of equal-width bins of [0, 1], at least 1.
      weighting: Weighting of the bins, 'count' or 'bins'; see `calibration_error`.

    Returns:
      Error in [0, 1]; NaN without examples.

    Raises:
      ValueError: The shapes do not match, a label is not a class, there is no bin, or the weighting is another word.

    References:
      Naeini, Cooper & Hauskrecht, 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
      Guo, Pleiss, Sun & Weinberger, 2017, "On Calibration of Modern Neural Networks", eq. 3,
      https://arxiv.org/abs/1706.04599
    """
    table = in_parts(functools.partial(reliability_sums, bins=bins), logits, labels, mask)
    return calibration_error(table, weighting)


def classwise_ece(
    logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS, weighting: str = "count"
) -> float:
    """Returns the calibration error of every class's probability, averaged over classes.

    It is small for many classes, since most probabilities and most frequencies are almost 0.

    Args:
      logits: Logits [examples, classes].
      labels: Integer labels [examples] in [0, classes).
      mask: Mask [examples] of the examples that count; None counts all.
      bins: Number of equal-width bins of [0, 1], at least 1.
      weighting: Weighting of the bins, 'count' or 'bins'; see `calibration_error`.

    Returns:
      Error in [0, 1]; NaN without examples.

    Raises:
      ValueError: The shapes do not match, a label is not a class, there is no bin, or the weighting is another word.

    References:
      Kull, Perello-Nieto, Kaengsepp, Silva Filho, Song & Flach, 2019, "Beyond Temperature Scaling: Obtaining
      Well-Calibrated Multiclass Probabilities with Dirichlet Calibration", https://arxiv.org/abs/1910.12656
    """
    table = in_parts(functools.partial(classwise_sums, bins=bins), logits, labels, mask)
    return calibration_error(table, weighting)


def adaptive_ece(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> float:
    """Returns the expected calibration error over bins that hold equally many examples.

    The bins are cut from the sorted whole set, so the measure does not add over batches. Examples of equal confidence
    share their mean accuracy, so that the result does not depend on the order of the set.

    Args:
      logits: Logits [examples, classes].
      labels: Integer labels [examples] in [0, classes).
      mask: Mask [examples] of the examples that count; None counts all.
      bins: Number of bins, at least 1; their numbers of examples differ by at most one.

    Returns:
      Error in [0, 1]; NaN without examples.

    Raises:
      ValueError: The shapes do not match, a label is not a class, or there is no bin.

    References:
      Nguyen & O'Connor, 2015, "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models",
      https://arxiv.org/abs/1508.05154
    """
    check_count("bins", bins)
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    confidence, correct = (np.asarray(part)[np.asarray(mask)] for part in _top(logits, labels))
    if confidence.size == 0:
        return float("nan")
    values, tie, count = np.unique(confidence.astype(np.float64), return_inverse=True, return_counts=True)
    accuracy = np.repeat(np.bincount(tie, weights=correct) / count, count)
    gaps = np.array_split(accuracy - np.repeat(values, count), bins)
    return float(sum(abs(gap.sum()) for gap in gaps) / confidence.size)


def brier_decomposition(table: Bins) -> dict[str, float]:
    """Returns the Brier score and its parts, brier = reliability - resolution + uncertainty + within_bin.

    Murphy's three parts are exact for forecasts that are constant within a bin. 'within_bin' is the remainder for
    forecasts that vary (Stephenson et al., 2008), so the four parts sum to the score of the forecasts as they are.

    Args:
      table: Bins, each [classes, bins] for the score sum_k (q_k - y_k)^2 in [0, 2], or [bins] for the score of the
        largest probability alone, in [0, 1].

    Returns:
      Mapping of 'brier'; 'reliability', 0 at best; 'resolution', better if larger; 'uncertainty', a function of the
      labels alone; 'within_bin'. All are NaN for an empty table.

    References:
      Murphy, 1973, "A New Vector Partition of the Probability Score".
      Stephenson, Coelho & Jolliffe, 2008, "Two Extra Components in the Brier Score Decomposition".
    """
    count, predicted, observed, squared, both = (np.atleast_2d(np.asarray(part, np.float64)) for part in table)
    size = np.sum(count, axis=-1, keepdims=True)
    rate = divide(np.sum(observed, axis=-1, keepdims=True), size)
    mean_p, mean_y = (np.nan_to_num(divide(part, count)) for part in (predicted, observed))
    within = squared - predicted * mean_p - 2 * (both - predicted * mean_y)
    parts = {
        "brier": divide(squared - 2 * both + observed, size),
        "reliability": divide(count * (mean_p - mean_y) ** 2, size),
        "resolution": divide(count * (mean_y - rate) ** 2, size),
        "uncertainty": rate * (1 - rate),
        "within_bin": divide(within, size),
    }
    return {name: float(np.sum(part)) for name, part in parts.items()}


def fit_temperature(
    logits: Array, labels: Array, mask: Array | None = None, *, bounds: tuple[float, float] = (0.01, 100.0)
) -> float:
    """Returns the temperature T that minimises the NLL of softmax(logits / T), to be fitted on a validation set.

    The NLL is convex in 1 / T, so there is one minimum. It is found in float64 by Brent's method over log T, which has
    no random start.

    Args:
      logits: Logits [examples, classes].
      labels: Integer labels [examples] in [0, classes).
      mask: Mask [examples] of the examples that count; None counts all.
      bounds: Smallest and largest T, above 0. The result is the smallest if every label has the largest logit, and the
        largest if the labels are on the whole less likely than chance.

    Returns:
      Temperature T, above 1 for an overconfident network; NaN if no T gives a finite NLL, for example because a logit
      is NaN.

    Raises:
      ValueError: The shapes do not match, a label is not a class, there is no example, or the bounds are not in order.

    References:
      Guo, Pleiss, Sun & Weinberger, 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599
    """
    from scipy.optimize import minimize_scalar

    if not 0 < bounds[0] < bounds[1] < np.inf:
        raise ValueError(f"bounds must be 0 < least < largest, not {bounds!r}.")
    classes, counted = (np.asarray(part) for part in as_labels(labels, as_logits(logits), mask))
    if not counted.any():
        raise ValueError(f"no example to fit a temperature to: logits {show(logits)}, all masked.")
    scores = np.asarray(logits, np.float64)[counted]
    gaps = scores - np.max(scores, axis=-1, keepdims=True)  # at most 0, so that exp cannot overflow
    own = np.take_along_axis(gaps, classes[counted][:, None], axis=-1)[:, 0]

    def nll(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        return float(np.mean(np.log(np.sum(np.exp(beta * gaps), axis=-1)) - beta * own))

    found = minimize_scalar(nll, bounds=np.log(bounds), method="bounded", options={"xatol": 1e-10, "maxiter": 500})
    best = min([*np.log(bounds), found.x], key=nll)  # the method itself never evaluates the bounds
    if not np.isfinite(nll(best)):
        return float("nan")  # the method returns a point even if no value is finite
    return float(np.clip(np.exp(best), *bounds))  # exp(log(bound)) may be off by a rounding error


def calibration_scores(
    logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS
) -> dict[str, float]:
    """Returns all scores and calibration errors of whole arrays, by name.

    Args:
      logits: Logits [examples, classes].
      labels: Integer labels [examples] in [0, classes).
      mask: Mask [examples] of the examples that count; None counts all.
      bins: Number of bins of every binned error, at least 1.

    Returns:
      Mapping of name -> number: the means of `score_sums`, 'ece', 'reference_code_ece' (all bins weighted equally),
      'ece_adaptive' and 'ece_classwise'.

    Raises:
      ValueError: The shapes do not match, a label is not a class, or there is no bin.
    """
    table = in_parts(functools.partial(reliability_sums, bins=bins), logits, labels, mask)
    scores: dict[str, Any] = means(in_parts(score_sums, logits, labels, mask))
    return scores | {
        "ece": calibration_error(table),
        "reference_code_ece": calibration_error(table, "bins"),
        "ece_adaptive": adaptive_ece(logits, labels, mask, bins=bins),
        "ece_classwise": classwise_ece(logits, labels, mask, bins=bins),
    }


@jax.jit
def _scores(logits: Array, labels: Array) -> dict[str, Array]:
    """Returns each score of `score_sums` by name, for each example [batch]."""
    confidence, correct = _top(logits, labels)
    return {
        "accuracy": correct.astype(logits.dtype),
        "confidence": confidence,
        "nll": losses.cross_entropy(logits, labels),
        "brier": losses.softmax_mse(logits, labels),
        "entropy": -losses.confidence_penalty(logits),
    }


@jax.jit
def _top(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns the largest probability and whether its class is the label, each [batch]."""
    return jnp.max(jax.nn.softmax(logits), axis=-1), jnp.argmax(logits, axis=-1) == labels


@functools.partial(jax.jit, static_argnames="bins")
def _bin_sums(probs: Array, outcomes: Array, mask: Array, *, bins: int) -> Bins:
    """Returns the totals by bin of probabilities and outcomes [batch, ...], computed one bin after the other."""
    inner = jnp.asarray(np.arange(1, bins) / bins, probs.dtype)
    number = jnp.searchsorted(inner, probs)  # number of inner edges below the probability: its bin
    mask = jnp.expand_dims(mask, tuple(range(1, probs.ndim)))
    ones, y = jnp.ones(probs.shape, int), outcomes.astype(int)
    values = Bins(ones, probs, y, probs**2, probs * outcomes)

    def one(i: Array) -> Bins:
        here = (number == i) & mask
        return Bins(*(jnp.sum(jnp.where(here, value, jnp.zeros((), value.dtype)), axis=0) for value in values))

    # Computing all bins at once would store an array [batch, ..., bins] for each sum, since XLA on CPUs does not fuse
    # the comparison with the sum.
    return Bins(*(jnp.moveaxis(part, 0, -1) for part in jax.lax.map(one, jnp.arange(bins))))
