"""How alike two networks answer: top-1 agreement, divergences of their outputs, mutual information of their labels.

A network is compared with another one, or with the mean of several (`ensemble`). Guo et al. (2024) see low fidelity to
strongly augmented teachers as a trait of distillation, not as its failure.

Reference: Guo, Zhong, Liu, Feng & Ma, 2024, "Why Does Knowledge Distillation Work? Rethink Its Attention and Fidelity
Mechanism", https://arxiv.org/abs/2405.00739
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from kdjax.analysis._checks import as_labels, as_logits, as_mask, as_pair, check_choice, expectation, show
from kdjax.analysis.sums import divide, in_parts, means, overall, totals


def ensemble(logits: Sequence[Array], by: str = "logits") -> Array:
    """Returns logits of the mean of several networks.

    Args:
      logits: Logits [batch, classes] of each network, at least one, all of one shape.
      by: What is averaged: 'logits' as Guo et al. (2024) do, or 'probs', the softmaxes.

    Returns:
      Logits [batch, classes]. For 'probs' they are the logarithm of the mean, whose softmax is the mean.

    Raises:
      ValueError: There is no network, shapes differ, or `by` is another word.
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
    """Returns a batch's totals of how alike two networks answer; they add over batches and devices.

    Args:
      first_logits: Logits [batch, classes] of the first network, or of an `ensemble`.
      second_logits: Logits [batch, classes] of the second network.
      mask: Mask [batch] of the examples that count; None counts all.
      labels: Integer labels [batch]; if given, every total is split by true class.

    Returns:
      Mapping of name -> (sum, count), each [], or [classes] if labels are given. `means` turns them into means, after
      `overall` if the classes are to be pooled. With p1 and p2 the two outputs: 'agreement', whether the arg max is the
      same; 'kl_first_second' KL(p1 || p2); 'kl_second_first' KL(p2 || p1); 'total_variation' sum |p1 - p2| / 2;
      'entropy_first' H(p1); 'entropy_second' H(p2). Entropies and divergences are in nats.

    Raises:
      ValueError: The shapes do not match, or a label is not a class.
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
    """Returns the means over whole arrays of all that `fidelity_sums` adds up, and the mutual information of labels.

    Args:
      first_logits: Logits [examples, classes] of the first network.
      second_logits: Logits [examples, classes] of the second network.
      mask: Mask [examples] of the examples that count; None counts all.
      labels: Integer labels [examples]; if given, every mean is returned by true class too, as NAME_by_class [classes].

    Returns:
      Mapping of name -> mean, a float or an array [classes]. 'mutual_information' is that of the predicted labels.

    Raises:
      ValueError: The shapes do not match, or a label is not a class.
    """
    totals = in_parts(fidelity_sums, first_logits, second_logits, mask, labels)
    scores = means(overall(totals))
    scores["mutual_information"] = mutual_information(in_parts(label_pairs, first_logits, second_logits, mask))
    if labels is not None:
        scores |= {f"{name}_by_class": value for name, value in means(totals).items()}
    return scores


def label_pairs(first_logits: Array, second_logits: Array, mask: Array | None = None) -> Array:
    """Returns the table of counts of two networks' predicted labels; it adds over batches and devices.

    Args:
      first_logits: Logits [batch, classes] of the first network.
      second_logits: Logits [batch, classes] of the second network.
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      Integer counts [classes, classes]: a row for each label of the first network, a column for each of the second.

    Raises:
      ValueError: The shapes do not match.
    """
    first, second = as_pair(first_logits, second_logits)
    return _count_pairs(first, second, as_mask(mask, first))


def mutual_information(table: ArrayLike, correction: str = "none") -> float:
    """Returns the mutual information of two labellings, H(A) + H(B) - H(A, B), from their table of counts.

    The plug-in estimate from N examples is too high: for independent labels by about (classes - 1)^2 / 2N, which is 0.5
    nats for 100 classes and 10,000 examples.

    Args:
      table: Counts [classes, classes] over the whole set, as `label_pairs` adds them up.
      correction: 'none' is the plug-in estimate. 'miller_madow' adds (cells - 1) / 2N to each entropy, where cells is
        the number of cells that are not 0 (Miller, 1955).

    Returns:
      Mutual information in nats; with the correction it can be negative; NaN for an empty table.

    Raises:
      ValueError: The table does not have two axes, or the correction is another word.

    References:
      Miller, 1955, "Note on the Bias of Information Estimates".
    """
    joint = _table(table)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    return sum(label_entropy(each, correction) for each in (rows, columns)) - label_entropy(joint, correction)


def label_entropy(counts: ArrayLike, correction: str = "none") -> float:
    """Returns the entropy of labels from their counts, -sum_k f_k log f_k with f = counts / N.

    Args:
      counts: Counts, of any shape.
      correction: 'none' or 'miller_madow'; see `mutual_information`.

    Returns:
      Entropy in nats, at least 0; NaN if all counts are 0.

    Raises:
      ValueError: The correction is another word.
    """
    check_choice("correction", correction, ("none", "miller_madow"))
    counts = np.asarray(counts, np.float64).ravel()
    size, counts = counts.sum(), counts[counts > 0]
    if size == 0:
        return float("nan")
    frequencies = counts / size
    entropy = -np.sum(frequencies * np.log(frequencies))
    return float(entropy + (counts.size - 1) / (2 * size) * (correction == "miller_madow"))


def information_by_class(table: ArrayLike) -> np.ndarray:
    """Returns the information that each label of the first network gives about the second's, KL(p(B | A = a) || p(B)).

    Its mean over the first network's labels is the plug-in mutual information.

    Args:
      table: Counts [classes, classes], as `label_pairs` adds them up.

    Returns:
      Information [classes] in nats, at least 0; NaN for a label that the first network never gave.

    Raises:
      ValueError: The table does not have two axes.

    References:
      DeWeese & Meister, 1999, "How to Measure the Information Gained from One Symbol" (there called surprise).
    """
    joint = _table(table)
    given = divide(joint, joint.sum(axis=1, keepdims=True))
    marginal = divide(joint.sum(axis=0), joint.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(given == 0, 0, given * np.log(given / marginal))
    return terms.sum(axis=1)


def reference_code_kl_sums(
    first_logits: Array, second_logits: Array, mask: Array | None = None
) -> dict[str, tuple[Array, Array]]:
    """Returns a batch's totals of the divergence that the code of Guo et al. (2024) prints, 10 KL(second || first).

    That code passes the teacher first and the student second, so it prints ten times KL(student || teacher).

    Args:
      first_logits: Logits [batch, classes] of the first network, the teacher.
      second_logits: Logits [batch, classes] of the second network, the student.
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      {'reference_code_kl': (sum, count)}, ten times the divergence in nats.

    Raises:
      ValueError: The shapes do not match.
    """
    value, count = fidelity_sums(first_logits, second_logits, mask)["kl_second_first"]
    return {"reference_code_kl": (10 * value, count)}


def reference_code_mutual_information_sums(
    first_logits: Array, second_logits: Array, mask: Array | None = None
) -> dict[str, tuple[float, int]]:
    """Returns a batch's total of the mutual information as the code of Guo et al. (2024) averages it.

    That code averages the plug-in estimates of batches of 128 examples, weighted by their sizes. With many classes the
    result is far too high, since a batch fills few cells of the table: compare it only with numbers from the same code.
    The totals add over batches, but not over devices that share a batch. The function runs on the host.

    Args:
      first_logits: Logits [batch, classes] of the first network.
      second_logits: Logits [batch, classes] of the second network.
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      {'reference_code_mutual_information': (nats * size, size)}.

    Raises:
      ValueError: The shapes do not match.
    """
    table = np.asarray(label_pairs(first_logits, second_logits, mask))
    size = int(table.sum())
    return {"reference_code_mutual_information": (mutual_information(table) * size if size else 0.0, size)}


@jax.jit
def _log_mean_softmax(stacked: Array) -> Array:
    """Returns the logarithm of the mean softmax [batch, classes] of logits [networks, batch, classes]."""
    return jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0) - np.log(stacked.shape[0])


@jax.jit
def _measures(first: Array, second: Array) -> dict[str, Array]:
    """Returns each measure of `fidelity_sums` by name, for each example [batch]."""
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
    """Returns the table of counts [classes, classes] of the unmasked examples' predicted labels."""
    classes = first.shape[1]
    pair = jnp.argmax(first, axis=-1), jnp.argmax(second, axis=-1)
    # A scatter adds in no fixed order on a GPU, which makes no difference to integers.
    return jnp.zeros((classes, classes), int).at[pair].add(mask.astype(int))


def _table(table: ArrayLike) -> np.ndarray:
    """Returns a table of label pairs as float64; refuses another number of axes."""
    counts = np.asarray(table)
    if counts.ndim != 2:
        raise ValueError(f"a table of label pairs is [classes, classes], not {show(counts)}.")
    return counts.astype(np.float64)
