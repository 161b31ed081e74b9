"""Whether a network's probabilities are frequencies: calibration errors, proper scores, and the temperature that helps.

A bin is (a, b], so a confidence on an edge lies in the lower bin; 0 lies in the first. Edges and confidences are
compared in one precision.
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

BINS = 10


class Bins(NamedTuple):
    """Totals by bin of a probability p and what came of it, y in {0, 1}; they add over batches and devices.

    Attributes:
      count: [..., bins] integers.
      predicted: [..., bins], sum of p.
      observed: [..., bins] integers, sum of y.
      predicted_squared: [..., bins], sum of p^2.
      both: [..., bins], sum of p y.
    """

    count: Array
    predicted: Array
    observed: Array
    predicted_squared: Array
    both: Array


class Reliability(NamedTuple):
    """What a reliability diagram shows.

    Attributes:
      edges: [bins + 1], from 0 to 1.
      count: [..., bins] integers.
      confidence: [..., bins], mean p, NaN in an empty bin.
      accuracy: [..., bins], mean y, NaN in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def score_sums(logits: Array, labels: Array, mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Totals of a batch of the scores of single examples; they add over batches and devices.

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.

    Returns:
      name -> (sum, count) over 'accuracy', 'confidence' (largest probability), 'nll' in nats, 'brier'
      sum_k (q_k - y_k)^2 in [0, 2], 'entropy' in nats. `means` finishes them.

    Raises:
      ValueError: the shapes do not fit, or a label that no class has.
    """
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    return totals(_scores(logits, labels), mask)


def reliability_sums(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> Bins:
    """Totals of a batch by bins of the largest probability, y being whether its class is right.

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: equal-width bins of [0, 1], at least 1.

    Returns:
      Bins of [bins].

    Raises:
      ValueError: the shapes do not fit, a label that no class has, or no bin.
    """
    check_count("bins", bins)
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    return _bin_sums(*_top(logits, labels), mask, bins=bins)


def classwise_sums(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> Bins:
    """Totals of a batch by bins of every class's probability, y being whether the label is that class.

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: equal-width bins of [0, 1], at least 1.

    Returns:
      Bins of [classes, bins].

    Raises:
      ValueError: the shapes do not fit, a label that no class has, or no bin.
    """
    check_count("bins", bins)
    logits = as_logits(logits)
    labels, mask = as_labels(labels, logits, mask)
    is_label = labels[:, None] == jnp.arange(logits.shape[1])
    return _bin_sums(jax.nn.softmax(logits), is_label, mask, bins=bins)


def reliability(table: Bins) -> Reliability:
    """What a reliability diagram shows of the totals over a whole set.

    Args:
      table: Bins of [..., bins].

    Returns:
      Means by bin, in float64.
    """
    bins = np.shape(table.count)[-1]
    confidence, accuracy = divide(table.predicted, table.count), divide(table.observed, table.count)
    return Reliability(np.linspace(0, 1, bins + 1), np.asarray(table.count, np.int64), confidence, accuracy)


def calibration_error(table: Bins, weighting: str = "count") -> float:
    """Mean over bins of |accuracy - confidence|, and over classes if the totals are by class.

    Args:
      table: Bins of [bins], of `reliability_sums`, or [classes, bins], of `classwise_sums`.
      weighting: 'count' weighs a bin by its examples (Guo et al., 2017; by class, Kull et al., 2019); 'bins' weighs all
        bins alike, empty ones counting 0, which is what the multi-teacher paper's released code prints.

    Returns:
      In [0, 1]; NaN for an empty table.

    Raises:
      ValueError: another weighting.
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
    """Expected calibration error of whole arrays (Naeini et al., 2015; Guo et al., 2017).

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: of `reliability_sums`.
      weighting: of `calibration_error`.

    Returns:
      In [0, 1]. Its bias is upwards, by about the sampling error of the bins.

    Raises:
      ValueError: the shapes do not fit, a label that no class has, no bin, or another weighting.
    """
    table = in_parts(functools.partial(reliability_sums, bins=bins), logits, labels, mask)
    return calibration_error(table, weighting)


def classwise_ece(
    logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS, weighting: str = "count"
) -> float:
    """Calibration error of every class's probability, averaged over classes (Kull et al., 2019).

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: of `classwise_sums`.
      weighting: of `calibration_error`.

    Returns:
      In [0, 1]. Small for many classes, where most probabilities and most frequencies are nearly 0.

    Raises:
      ValueError: the shapes do not fit, a label that no class has, no bin, or another weighting.
    """
    table = in_parts(functools.partial(classwise_sums, bins=bins), logits, labels, mask)
    return calibration_error(table, weighting)


def adaptive_ece(logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal counts (Nguyen & O'Connor, 2015).

    Bins are cut from the sorted whole set, so it does not add over batches. Examples of one confidence share their mean
    accuracy: the order of the set does not matter.

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: whose counts differ by one at most, at least 1.

    Returns:
      In [0, 1]; NaN without examples.

    Raises:
      ValueError: the shapes do not fit, a label that no class has, or no bin.
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
    """Brier score and its parts, reliability - resolution + uncertainty + within_bin (Murphy, 1973).

    Murphy's three are those of forecasts that are constant in a bin; what they are not is 'within_bin' (Stephenson et
    al., 2008), so that the four make the score of the forecasts as they are.

    Args:
      table: Bins of [classes, bins], for the score sum_k (q_k - y_k)^2 in [0, 2], or of [bins], for that of the largest
        probability alone, in [0, 1].

    Returns:
      'brier', 'reliability' (0 is best), 'resolution' (large is good), 'uncertainty' (of the labels alone),
      'within_bin'; all NaN for an empty table.
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
    """Temperature T that minimises the NLL of softmax(logits / T), for logits of a validation set (Guo et al., 2017).

    Brent's method over log T in float64: the NLL is convex in 1 / T, so there is one minimum, and no random start.

    Args:
      logits: [batch, classes], on the host.
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bounds: least and largest T, above 0. The result lies at the least where every label has the largest logit, and at
        the largest where the logits say less than nothing of the labels.

    Returns:
      T; above 1 for a network that is too sure; NaN where no T makes the NLL finite, as with a logit that is NaN.

    Raises:
      ValueError: the shapes do not fit, a label that no class has, no example, or bounds out of order.
    """
    from scipy.optimize import minimize_scalar

    if not 0 < bounds[0] < bounds[1] < np.inf:
        raise ValueError(f"bounds must be 0 < least < largest, not {bounds!r}.")
    labels, mask = (np.asarray(part) for part in as_labels(labels, as_logits(logits), mask))
    if not mask.any():
        raise ValueError(f"no example to fit a temperature to: logits {show(logits)}, all masked.")
    logits, labels = np.asarray(logits, np.float64)[mask], labels[mask]
    gaps = logits - np.max(logits, axis=-1, keepdims=True)
    own = np.take_along_axis(gaps, labels[:, None], axis=-1)[:, 0]

    def nll(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        return float(np.mean(np.log(np.sum(np.exp(beta * gaps), axis=-1)) - beta * own))

    found = minimize_scalar(nll, bounds=np.log(bounds), method="bounded", options={"xatol": 1e-10, "maxiter": 500})
    best = min([*np.log(bounds), found.x], key=nll)  # the method never tries the bounds themselves
    if not np.isfinite(nll(best)):
        return float("nan")  # the method ends somewhere all the same
    return float(np.clip(np.exp(best), *bounds))  # log and exp do not come back to the last bit


def calibration_scores(
    logits: Array, labels: Array, mask: Array | None = None, *, bins: int = BINS
) -> dict[str, float]:
    """Scores and calibration errors of whole arrays, by name.

    Args:
      logits: [batch, classes].
      labels: integers [batch].
      mask: [batch], the examples that count; None for all.
      bins: of every binned error.

    Returns:
      The means of `score_sums`, 'ece', 'reference_code_ece' (all bins alike), 'ece_adaptive', 'ece_classwise'.

    Raises:
      ValueError: the shapes do not fit, a label that no class has, or no bin.
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
    """Adds up [batch, ...] probabilities and outcomes by bin, one bin after the other."""
    inner = jnp.asarray(np.arange(1, bins) / bins, probs.dtype)
    number = jnp.searchsorted(inner, probs)  # how many inner edges lie below
    mask = jnp.expand_dims(mask, tuple(range(1, probs.ndim)))
    ones, y = jnp.ones(probs.shape, int), outcomes.astype(int)
    values = Bins(ones, probs, y, probs**2, probs * outcomes)

    def one(i: Array) -> Bins:
        here = (number == i) & mask
        return Bins(*(jnp.sum(jnp.where(here, value, jnp.zeros((), value.dtype)), axis=0) for value in values))

    # All bins at once would store [batch, ..., bins] for each sum: XLA:CPU does not fuse them.
    return Bins(*(jnp.moveaxis(part, 0, -1) for part in jax.lax.map(one, jnp.arange(bins))))
