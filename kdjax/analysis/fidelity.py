"""How alike two runs answer: top-1 agreement, divergences of their outputs, mutual information of their labels.

A run is compared with another, or with the mean of several (`ensemble`). The multi-teacher paper (Expert Systems with
Applications 262, 2025) holds low fidelity to be a trait of distillation from augmented teachers, not its failure.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.analysis._checks import as_labels, as_logits, as_mask, as_pair, check_choice, expectation, show
from kdjax.analysis.sums import divide, in_parts, means, overall, totals


def ensemble(logits: Sequence[Array], by: str = "logits") -> Array:
    """Logits of the mean of several runs.

    Args:
      logits: one [batch, classes] a run, at least one, all of one shape.
      by: 'logits' takes the mean of the logits, as the multi-teacher paper does; 'probs' the mean of the softmaxes.

    Returns:
      [batch, classes]; for 'probs' the logarithm of the mean, whose softmax is the mean.

    Raises:
      ValueError: no run, shapes that differ, or another word in `by`.
    """
    check_choice("by", by, ("logits", "probs"))
    runs = [as_logits(each) for each in logits]
    if not runs or len({run.shape for run in runs}) > 1:
        raise ValueError(f"an ensemble needs logits of one shape [batch, classes], not {[show(run) for run in runs]}.")
    stacked = jnp.stack(runs)
    return jnp.mean(stacked, axis=0) if by == "logits" else _log_mean_softmax(stacked)


def fidelity_sums(
    first_logits: Array, second_logits: Array, mask: Array | None = None, labels: Array | None = None
) -> dict[str, tuple[Array, Array]]:
    """Totals of a batch for how alike two runs are; they add over batches and devices.

    Args:
      first_logits: [batch, classes], of a run or an `ensemble`.
      second_logits: [batch, classes].
      mask: [batch], the examples that count; None for all.
      labels: integers [batch]; with them every total is by true class.

    Returns:
      name -> (sum, count), each [], or [classes] with labels, over 'agreement' (same arg max), 'kl_first_second'
      KL(p1 || p2), 'kl_second_first', 'total_variation' sum |p1 - p2| / 2, 'entropy_first', 'entropy_second';
      entropies and divergences in nats. `means` finishes them, after `overall` if the classes are to be pooled.

    Raises:
      ValueError: the shapes do not fit, or a label that no class has.
    """
    first, second = as_pair(first_logits, second_logits)
    values = _measures(first, second)
    if labels is None:
        return totals(values, as_mask(mask, first))
    labels, mask = as_labels(labels, first, mask)
    return totals(values, mask, labels, groups=first.shape[1])


def fidelity_scores(
    first_logits: Array, second_logits: Array, mask: Array | None = None, labels: Array | None = None
) -> dict[str, Any]:
    """Means over whole arrays of all that `fidelity_sums` adds up, and 'mutual_information' of the predicted labels.

    Args:
      first_logits: [batch, classes].
      second_logits: [batch, classes].
      mask: [batch], the examples that count; None for all.
      labels: integers [batch]; with them every mean also comes by true class, as NAME_by_class [classes].

    Returns:
      name -> number, or [classes].

    Raises:
      ValueError: the shapes do not fit, or a label that no class has.
    """
    totals = in_parts(fidelity_sums, first_logits, second_logits, mask, labels)
    scores = means(overall(totals))
    scores["mutual_information"] = mutual_information(in_parts(label_pairs, first_logits, second_logits, mask))
    if labels is not None:
        scores |= {f"{name}_by_class": value for name, value in means(totals).items()}
    return scores


def label_pairs(first_logits: Array, second_logits: Array, mask: Array | None = None) -> Array:
    """Table of counts of the two runs' predicted labels; it adds over batches and devices.

    Args:
      first_logits: [batch, classes].
      second_logits: [batch, classes].
      mask: [batch], the examples that count; None for all.

    Returns:
      Integers [classes, classes]: row for the first run's arg max, column for the second's.

    Raises:
      ValueError: the shapes do not fit.
    """
    first, second = as_pair(first_logits, second_logits)
    return _count_pairs(first, second, as_mask(mask, first))


def mutual_information(table: Array, correction: str = "none") -> float:
    """Mutual information of two labellings, H(A) + H(B) - H(A, B), from their table of counts.

    The plug-in value of N examples is too high by about (classes - 1)^2 / 2N for independent labels: 0.5 nats for
    100 classes and 10 000 examples.

    Args:
      table: counts [classes, classes] over the whole set, as `label_pairs` adds up.
      correction: 'none', or 'miller_madow', which adds (cells - 1) / 2N to each entropy, cells being those that occur
        (Miller, 1955); it can be negative.

    Returns:
      Nats; NaN for an empty table.

    Raises:
      ValueError: not a table of two axes, or another correction.
    """
    table = _table(table)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    return sum(label_entropy(each, correction) for each in (rows, columns)) - label_entropy(table, correction)


def label_entropy(counts: Array, correction: str = "none") -> float:
    """Entropy of labels from their counts, -sum_k f_k log f_k with f = counts / N.

    Args:
      counts: of any shape.
      correction: of `mutual_information`.

    Returns:
      Nats; NaN if nothing was counted.

    Raises:
      ValueError: another correction.
    """
    check_choice("correction", correction, ("none", "miller_madow"))
    counts = np.asarray(counts, np.float64).ravel()
    size, counts = counts.sum(), counts[counts > 0]
    if size == 0:
        return float("nan")
    frequencies = counts / size
    entropy = -np.sum(frequencies * np.log(frequencies))
    return float(entropy + (counts.size - 1) / (2 * size) * (correction == "miller_madow"))


def information_by_class(table: Array) -> np.ndarray:
    """What each label of the first run says of the second's, KL(p(B | A = a) || p(B)).

    Its mean over the first run's labels is the plug-in mutual information (specific surprise; DeWeese & Meister, 1999).

    Args:
      table: counts [classes, classes].

    Returns:
      [classes] in nats, NaN for a label that the first run never gave.

    Raises:
      ValueError: not a table of two axes.
    """
    table = _table(table)
    given = divide(table, table.sum(axis=1, keepdims=True))
    marginal = divide(table.sum(axis=0), table.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(given == 0, 0, given * np.log(given / marginal))
    return terms.sum(axis=1)


def reference_code_kl_sums(
    first_logits: Array, second_logits: Array, mask: Array | None = None
) -> dict[str, tuple[Array, Array]]:
    """Divergence as the multi-teacher paper's released code prints it: 10 KL(softmax(second) || softmax(first)).

    Called there with (teacher, student), so it is ten times the divergence of the student from the teacher.

    Args:
      first_logits: [batch, classes].
      second_logits: [batch, classes].
      mask: [batch], the examples that count; None for all.

    Returns:
      {'reference_code_kl': (sum, count)}, ten times nats.

    Raises:
      ValueError: the shapes do not fit.
    """
    value, count = fidelity_sums(first_logits, second_logits, mask)["kl_second_first"]
    return {"reference_code_kl": (10 * value, count)}


def reference_code_mutual_information_sums(
    first_logits: Array, second_logits: Array, mask: Array | None = None
) -> dict[str, tuple[float, int]]:
    """Mutual information as the released code averages it: plug-in within one batch, 128 examples there.

    Far too high with many classes, since a batch fills few cells of the table: compare only with numbers made alike.
    Weighted by the size of the batch. It adds over batches, not over devices that share one, and runs on the host.

    Args:
      first_logits: [batch, classes].
      second_logits: [batch, classes].
      mask: [batch], the examples that count; None for all.

    Returns:
      {'reference_code_mutual_information': (nats * size, size)}.

    Raises:
      ValueError: the shapes do not fit.
    """
    table = np.asarray(label_pairs(first_logits, second_logits, mask))
    size = int(table.sum())
    return {"reference_code_mutual_information": (mutual_information(table) * size if size else 0.0, size)}


@jax.jit
def _log_mean_softmax(stacked: Array) -> Array:
    return jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0) - np.log(stacked.shape[0])


@jax.jit
def _measures(first: Array, second: Array) -> dict[str, Array]:
    log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return {
        "agreement": (jnp.argmax(first, axis=-1) == jnp.argmax(second, axis=-1)).astype(p.dtype),
        "kl_first_second": expectation(p, log_p - log_q),
        "kl_second_first": expectation(q, log_q - log_p),
        "total_variation": jnp.sum(jnp.abs(p - q), axis=-1) / 2,
        "entropy_first": -expectation(p, log_p),
        "entropy_second": -expectation(q, log_q),
    }


@jax.jit
def _count_pairs(first: Array, second: Array, mask: Array) -> Array:
    classes = first.shape[1]
    pair = jnp.argmax(first, axis=-1), jnp.argmax(second, axis=-1)
    return jnp.zeros((classes, classes), int).at[pair].add(mask.astype(int))  # integers: in any order the same sum


def _table(table: Any) -> np.ndarray:
    table = np.asarray(table)
    if table.ndim != 2:
        raise ValueError(f"a table of label pairs is [classes, classes], not {show(table)}.")
    return table.astype(np.float64)
