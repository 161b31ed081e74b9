"""Losses that need no teacher: they compare a network's logits with labels, or depend on the logits alone."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._checks import as_logits, as_targets, check_range, expectation
from kdjax.losses.sampled import sampled_values
from kdjax.types import Sampled


def cross_entropy(logits: Array, labels: Array | Sampled, *, label_smoothing: float = 0.0) -> Array:
    """Computes the cross-entropy -sum_k y_k log q_k between the labels y and q = softmax(logits).

    Args:
      logits: Logits [..., classes].
      labels: Integer labels [...] in [0, classes), label probabilities [..., classes], or a teacher's Sampled [..., n]:
        on average over the draws, value and gradient are those of all of the teacher's probabilities.
      label_smoothing: Share s of the target that is spread evenly over all classes, in [0, 1):
        y <- (1 - s) y + s / classes.

    Returns:
      Loss of each example [...] in nats, at least 0. It is NaN for an integer label outside [0, classes), since a
      compiled function cannot raise an error that depends on values.

    Raises:
      ValueError: The shapes do not match, or label_smoothing is out of range.

    References:
      Szegedy, Vanhoucke, Ioffe, Shlens & Wojna, 2016, "Rethinking the Inception Architecture for Computer Vision"
      (label smoothing), https://arxiv.org/abs/1512.00567
    """
    check_range("label_smoothing", label_smoothing)
    logits = as_logits(logits)
    if isinstance(labels, Sampled):
        if not isinstance(label_smoothing, int | float) or label_smoothing != 0:
            raise ValueError("a sampled teacher takes no label_smoothing; set it to 0.")
        values, good = sampled_values(logits, labels, less_entropy=False)
        return jnp.where(good, values, jnp.nan)
    targets, exists = as_targets(labels, logits)
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    return jnp.where(exists, -expectation(targets, jax.nn.log_softmax(logits)), jnp.nan)


def softmax_mse(logits: Array, labels: Array, *, space: str = "probs", reduction: str = "class_sum") -> Array:
    """Computes the squared error sum_k (q_k - y_k)^2 between q = softmax(logits) and the labels y.

    This is the loss of the MSE teacher. For labels drawn from the Bayes posterior p*, the expected loss is |q - p*|^2
    plus a constant, so p* minimises it (Hamidi et al., 2024). With the default options it is the Brier score.

    The other options reproduce variants in published code, which behave differently: the mean over classes is smaller
    by the factor `classes`, so it needs a larger learning rate; comparing the logits themselves with one-hot labels
    gives a teacher whose softmax is nearly uniform.

    Args:
      logits: Logits [..., classes].
      labels: Integer labels [...] in [0, classes), or label probabilities [..., classes].
      space: What is compared with the labels: 'probs' is softmax(logits), 'logits' the logits themselves.
      reduction: Reduction over classes, 'class_sum' or 'class_mean'.

    Returns:
      Loss of each example [...], in [0, 2] for 'probs' and 'class_sum'. It is NaN for an integer label outside
      [0, classes).

    Raises:
      ValueError: The shapes do not match, or space or reduction is not one of the values above.

    References:
      Hamidi, Deng, Tan, Ye & Salamah, 2024, "How to Train the Teacher Model for Effective Knowledge Distillation",
      https://arxiv.org/abs/2407.18041
      Brier, 1950, "Verification of Forecasts Expressed in Terms of Probability".
    """
    check_range("space", space)
    check_range("reduction", reduction)
    logits = as_logits(logits)
    targets, exists = as_targets(labels, logits)
    outputs = jax.nn.softmax(logits) if space == "probs" else logits
    reduce = jnp.sum if reduction == "class_sum" else jnp.mean
    return jnp.where(exists, reduce((outputs - targets) ** 2, axis=-1), jnp.nan)


def top_score_difference(logits: Array, *, num_top: int = 5) -> Array:
    """Computes the gap between the top probability and the mean of the next ones, f_a1 - sum_{k=2..K} f_ak / (K - 1).

    f is the softmax and a_k is the class with the k-th largest output of the network itself, whether or not it is the
    label. A tolerant teacher is trained to keep this gap small.

    Args:
      logits: Logits [..., classes].
      num_top: Number K of top classes in the gap, the first included; at least 2, at most `classes`.

    Returns:
      Gap of each example [...] in [0, 1]: 1 for a one-hot output, 0 for a uniform one.

    Raises:
      ValueError: The logits are not [..., classes], or num_top is out of range.

    References:
      Yang, Xie, Qiao & Yuille, 2018, "Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates
      Better Students", https://arxiv.org/abs/1805.05551
    """
    check_range("num_top", num_top)
    logits = as_logits(logits)
    if num_top > logits.shape[-1]:
        raise ValueError(f"num_top={num_top} is above the {logits.shape[-1]} classes of logits {list(logits.shape)}.")
    # Classes are ranked by log-probability: probabilities that underflow to 0 would all be tied.
    top = jnp.exp(lax.top_k(jax.nn.log_softmax(logits), num_top)[0])
    return top[..., 0] - jnp.mean(top[..., 1:], axis=-1)


def tolerant(logits: Array, labels: Array, *, num_top: int = 5, eta: float = 0.6) -> Array:
    """Computes the tolerant teacher's loss, -eta log f_y + (1 - eta) TSD, TSD being the `top_score_difference`.

    Args:
      logits: Logits [..., classes]; f is their softmax.
      labels: Integer labels y [...] in [0, classes), or label probabilities [..., classes].
      num_top: Number of top classes in the gap, the first included; at least 2, at most `classes`.
      eta: Weight of the cross-entropy, in [0, 1]; 1 is the cross-entropy alone. The paper's value was not recovered;
        0.6 is kdjax's choice.

    Returns:
      Loss of each example [...], at least 0. It is NaN for an integer label outside [0, classes).

    Raises:
      ValueError: The shapes do not match, or num_top or eta is out of range.

    References:
      Yang, Xie, Qiao & Yuille, 2018, "Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates
      Better Students", https://arxiv.org/abs/1805.05551
    """
    check_range("eta", eta)
    gap = top_score_difference(logits, num_top=num_top)
    return eta * cross_entropy(logits, labels) + (1 - eta) * gap


def confidence_penalty(logits: Array) -> Array:
    """Computes the negative Shannon entropy sum_k q_k log q_k of q = softmax(logits), which penalises confidence.

    Args:
      logits: Logits [..., classes].

    Returns:
      Penalty of each example [...] in nats, from -log(classes) for a uniform output to 0 for a one-hot one.

    Raises:
      ValueError: The logits are not [..., classes].

    References:
      Pereyra, Tucker, Chorowski, Kaiser & Hinton, 2017, "Regularizing Neural Networks by Penalizing Confident Output
      Distributions", https://arxiv.org/abs/1701.06548
    """
    log_q = jax.nn.log_softmax(as_logits(logits))
    return expectation(jnp.exp(log_q), log_q)
