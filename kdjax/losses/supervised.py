"""Losses that need no teacher: of labels, or of the network's own output."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logits, as_targets, check_range, expectation


def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Cross-entropy of the labels and the softmax of the logits, -sum_k y_k log q_k.

    Args:
      logits: [batch, classes].
      labels: integers [batch] in [0, classes), or probabilities [batch, classes].
      label_smoothing: in [0, 1), the share of the target that goes to all classes alike,
        y <- (1 - s) y + s / classes (Szegedy et al., 2016).

    Returns:
      [batch] in nats. NaN for an integer label that no class has: values cannot be refused inside a compiled step.

    Raises:
      ValueError: shapes do not fit, or label_smoothing is out of range.
    """
    check_range("label_smoothing", label_smoothing)
    logits = as_logits(logits)
    targets, exists = as_targets(labels, logits)
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
    return jnp.where(exists, -expectation(targets, jax.nn.log_softmax(logits)), jnp.nan)


def softmax_mse(logits: Array, labels: Array, *, space: str = "probs", reduction: str = "class_sum") -> Array:
    """Squared error of the softmax against the labels, sum_k (q_k - y_k)^2: the loss of the MSE teacher.

    With one-hot labels its mean is E |q - p*|^2 plus a constant, so its minimiser is the Bayes posterior p* (Hamidi et
    al., 2024); the defaults make it the Brier score (1950). The other variants are those of released code: a mean over
    classes is `classes` times smaller, and logits in the place of q give a teacher whose softmax is nearly uniform.

    Args:
      logits: [batch, classes].
      labels: integers [batch] in [0, classes), or probabilities [batch, classes].
      space: 'probs' compares softmax(logits) with the labels, 'logits' the logits themselves.
      reduction: over classes, 'class_sum' or 'class_mean'.

    Returns:
      [batch], in [0, 2] for 'probs' and 'class_sum'. NaN for an integer label that no class has.

    Raises:
      ValueError: shapes do not fit, or space or reduction is none of the above.
    """
    check_range("space", space)
    check_range("reduction", reduction)
    logits = as_logits(logits)
    targets, exists = as_targets(labels, logits)
    outputs = jax.nn.softmax(logits) if space == "probs" else logits
    reduce = jnp.sum if reduction == "class_sum" else jnp.mean
    return jnp.where(exists, reduce((outputs - targets) ** 2, axis=-1), jnp.nan)


def top_score_difference(logits: Array, *, num_top: int = 5) -> Array:
    """Gap between the top probability and the mean of the next ones, f_a1 - sum_{k=2..K} f_ak / (K - 1).

    The score that a tolerant teacher keeps small (Yang et al., 2018). a_k is the class with the k-th largest output of
    the network itself, be it the label or not.

    Args:
      logits: [batch, classes].
      num_top: K, how many top classes take part, the first included; at least 2, at most classes.

    Returns:
      [batch] in [0, 1]: 1 for a one-hot output, 0 for a uniform one.

    Raises:
      ValueError: logits are not [batch, classes], or num_top is out of range.
    """
    check_range("num_top", num_top)
    logits = as_logits(logits)
    if num_top > logits.shape[1]:
        raise ValueError(f"num_top={num_top} is above the {logits.shape[1]} classes of logits {list(logits.shape)}.")
    # Ranked by logarithm: probabilities that underflow to one zero keep their order.
    top = jnp.exp(lax.top_k(jax.nn.log_softmax(logits), num_top)[0])
    return top[:, 0] - jnp.mean(top[:, 1:], axis=-1)


def tolerant(logits: Array, labels: Array, *, num_top: int = 5, eta: float = 0.6) -> Array:
    """Cross-entropy mixed with the top score difference, -eta log f_y + (1 - eta) TSD (Yang et al., 2018).

    Args:
      logits: [batch, classes].
      labels: integers [batch] in [0, classes), or probabilities [batch, classes].
      num_top: of `top_score_difference`.
      eta: in [0, 1], the share of the cross-entropy; 1 is the cross-entropy alone. The paper's value is not recovered.

    Returns:
      [batch]. NaN for an integer label that no class has.

    Raises:
      ValueError: shapes do not fit, or num_top or eta is out of range.
    """
    check_range("eta", eta)
    gap = top_score_difference(logits, num_top=num_top)
    return eta * cross_entropy(logits, labels) + (1 - eta) * gap


def confidence_penalty(logits: Array) -> Array:
    """Negative Shannon entropy of the output, sum_k q_k log q_k (Pereyra et al., 2017).

    Args:
      logits: [batch, classes].

    Returns:
      [batch] in nats, from -log(classes) for a uniform output to 0 for a one-hot one.

    Raises:
      ValueError: logits are not [batch, classes].
    """
    log_q = jax.nn.log_softmax(as_logits(logits))
    return expectation(jnp.exp(log_q), log_q)
