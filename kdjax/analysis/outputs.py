"""Accuracy, probabilities and entropies of whole arrays of outputs, in NumPy and float64."""

import numpy as np

from kdjax.analysis._checks import show


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of examples whose largest score is that of the label.

    Args:
      scores: Logits or probabilities [examples, classes].
      labels: Integer labels [examples].

    Returns:
      Accuracy in [0, 1].

    Raises:
      ValueError: The shapes do not match.
    """
    if np.ndim(scores) != 2 or np.shape(labels) != np.shape(scores)[:1]:
        raise ValueError(f"accuracy needs [examples, classes] and [examples], not {show(scores)} and {show(labels)}.")
    return float(np.mean(np.argmax(scores, axis=1) == labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits in float64.

    Args:
      logits: Logits [..., classes].

    Returns:
      Probabilities [..., classes] that sum to 1.
    """
    return np.exp(_log_softmax(logits))


def entropy(logits: np.ndarray) -> np.ndarray:
    """Returns the entropy of softmax(logits) in nats.

    Args:
      logits: Logits [..., classes].

    Returns:
      Entropies [...] in [0, log(classes)].
    """
    logs = _log_softmax(logits)
    return -(np.exp(logs) * logs).sum(axis=-1)


def distribution_entropy(distributions: np.ndarray) -> np.ndarray:
    """Returns the entropy of distributions in nats; a class of probability 0 adds nothing.

    Args:
      distributions: Probabilities [..., classes] that sum to 1.

    Returns:
      Entropies [...] in [0, log(classes)].
    """
    p = np.asarray(distributions, np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
