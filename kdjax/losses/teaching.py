"""Losses that train a network to be a good teacher, beside those of kdjax.losses.supervised.

They read the network's logits, and some of them what a run carries along: the mean output of every class, or each
example's earlier outputs. `lipschitz` reads the network's parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from kdjax.losses._checks import add_up, as_float, as_logits, as_targets, check_range, expectation
from kdjax.losses.logits import kd
from kdjax.losses.supervised import cross_entropy


def gce(logits: Array, labels: Array, *, q: float = 0.7) -> Array:
    """Computes the generalised cross-entropy (1 - p_y^q) / q of p = softmax(logits), which is robust to wrong labels.

    It lies between cross-entropy, its limit at q = 0, and 1 - p_y, half of the absolute error, at q = 1. Its gradient
    is that of cross-entropy times p_y^q. It is not a proper score: for labels drawn from the posterior p*, its
    minimiser is proportional to p*^(1 / (1 - q)), and one-hot at q = 1.

    Args:
      logits: Logits [..., classes].
      labels: Integer labels y [...] in [0, classes), or label probabilities [..., classes], over which the loss is
        averaged.
      q: Exponent, in [0, 1].

    Returns:
      Loss of each example [...], in [0, 1 / q]. It is NaN for an integer label outside [0, classes).

    Raises:
      ValueError: The shapes do not match, or q is out of range.

    References:
      Zhang & Sabuncu, 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
      https://arxiv.org/abs/1805.07836
    """
    check_range("q", q)
    logits = as_logits(logits)
    targets, exists = as_targets(labels, logits)
    log_p = jax.nn.log_softmax(logits)
    exponent = jnp.where(q == 0, 1, q)  # the branch that is not taken must have a finite gradient as well
    by_class = jnp.where(q == 0, -log_p, -jnp.expm1(exponent * log_p) / exponent)
    return jnp.where(exists, expectation(targets, by_class), jnp.nan)


def mcmi(logits: Array, labels: Array, centroids: Array, *, cmi_weight: float = 0.15) -> Array:
    """Computes cross-entropy minus `cmi_weight` times KL(p || Q_y), p = softmax(logits), Q_y the centroid of class y.

    With Q_y the mean output of class y, the mean of KL(p || Q_y) is the conditional mutual information of image and
    output given the label. A weight above 0 maximises it (the paper's teacher), a weight below 0 minimises it.

    The released code holds the centroids of the initial network fixed. The centroids are constants: no gradient flows
    through them. Their probabilities are at least the smallest normal number, so that the loss is finite.

    Args:
      logits: Logits [..., classes].
      labels: Integer labels y [...] in [0, classes), or label probabilities [..., classes], over which the loss is
        averaged.
      centroids: Probabilities [classes, classes]; row y is the centroid Q_y. See `class_centroids`.
      cmi_weight: Weight of the divergence. The paper's scripts use 0.1 to 0.25, and 0.15 for resnet56 with few images.

    Returns:
      Loss of each example [...] in nats, which may be below 0. It is NaN for an integer label outside [0, classes).

    Raises:
      ValueError: The shapes do not match.

    References:
      Ye, Hamidi, Tan & Yang, 2024, "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on
      Conditional Mutual Information", https://arxiv.org/abs/2401.08732
    """
    return cross_entropy(logits, labels) - cmi_weight * centroid_divergence(logits, labels, centroids)


def centroid_divergence(logits: Array, labels: Array, centroids: Array) -> Array:
    """Computes KL(p || Q_y), p = softmax(logits), Q_y the centroid of class y; see `mcmi`.

    Its gradient with respect to the logits is p (log p - log Q_y - KL).

    Args:
      logits: Logits [..., classes].
      labels: Integer labels y [...] in [0, classes), or label probabilities [..., classes].
      centroids: Probabilities [classes, classes]; row y is the centroid Q_y.

    Returns:
      Divergence of each example [...] in nats, at least 0 for centroids that sum to 1. It is NaN for an integer label
      outside [0, classes).

    Raises:
      ValueError: The shapes do not match.

    References:
      Ye, Hamidi, Tan & Yang, 2024, "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on
      Conditional Mutual Information", https://arxiv.org/abs/2401.08732
    """
    logits, centroids = as_logits(logits), as_float(centroids)
    targets, exists = as_targets(labels, logits)
    if centroids.shape != (logits.shape[-1],) * 2:
        raise ValueError(
            f"centroids must be [classes, classes] for logits {list(logits.shape)}, not {list(centroids.shape)}."
        )
    log_p = jax.nn.log_softmax(logits)
    log_q = jnp.log(jnp.maximum(lax.stop_gradient(centroids), jnp.finfo(centroids.dtype).tiny))
    p = jnp.exp(log_p)
    to_centroids = jnp.matmul(p, log_q.T, precision=lax.Precision.HIGHEST)  # entry y: sum_k p_k log Q_y,k
    return jnp.where(exists, expectation(p, log_p) - jnp.sum(targets * to_centroids, axis=-1), jnp.nan)


def class_centroids(probabilities: Array, labels: Array, *, where: ArrayLike | None = None) -> Array:
    """Returns the mean output of every class, the centroids of `mcmi`.

    Args:
      probabilities: Outputs [batch, classes] of a network.
      labels: Integer labels [batch] in [0, classes), or label probabilities [batch, classes], which weight the mean.
      where: Boolean array [batch] of the examples that count; None counts all.

    Returns:
      [classes, classes]; row y is the mean output of class y, and uniform for a class without examples.

    Raises:
      ValueError: The shapes do not match.
    """
    return normalize_centroids(centroid_sums(probabilities, labels, where=where)[0])


def centroid_sums(probabilities: Array, labels: Array, *, where: ArrayLike | None = None) -> tuple[Array, Array]:
    """Returns the sum of the outputs of every class [classes, classes] and the number of its examples [classes].

    Args:
      probabilities: Outputs [batch, classes] of a network.
      labels: Integer labels [batch] in [0, classes), or label probabilities [batch, classes]; a label outside of the
        range does not count.
      where: Boolean array [batch] of the examples that count; None counts all.

    Raises:
      ValueError: The shapes do not match.
    """
    outputs = as_logits(probabilities, "probabilities")
    targets, exists = as_targets(labels, outputs)
    counted = exists if where is None else exists & jnp.asarray(where, bool)
    weights = jnp.where(counted[:, None], targets, 0).astype(outputs.dtype)
    return jnp.matmul(weights.T, outputs, precision=lax.Precision.HIGHEST), jnp.sum(weights, axis=0)


def normalize_centroids(sums: Array) -> Array:
    """Returns rows [classes, classes] that sum to 1; a row of zeros becomes uniform."""
    totals = jnp.sum(sums, axis=-1, keepdims=True)
    return jnp.where(totals > 0, sums / jnp.where(totals > 0, totals, 1), 1 / sums.shape[-1])


def move_centroids(centroids: Array, sums: Array, counts: Array, momentum: float) -> Array:
    """Returns centroids moved towards the mean outputs of a batch: momentum Q + (1 - momentum) mean, rows normalised.

    Args:
      centroids: [classes, classes].
      sums: [classes, classes] sum of the batch's outputs of every class.
      counts: [classes] number of its examples; the centroid of a class without examples stays.
      momentum: Weight of the old centroids, in [0, 1]; the released code, where it is not commented out, has 0.9999.
    """
    means = sums / jnp.where(counts > 0, counts, 1)[:, None]
    moved = jnp.where(counts[:, None] > 0, momentum * centroids + (1 - momentum) * means, centroids)
    return normalize_centroids(moved)


def consistency(logits: Array, remembered: Array) -> Array:
    """Computes the squared error sum_k (p_k - m_k)^2 between p = softmax(logits) and remembered probabilities m.

    SoTeacher remembers the mean of an example's outputs over the epochs before, each for that epoch's view of it. The
    gradient flows through p alone.

    Args:
      logits: Logits [..., classes].
      remembered: Probabilities [..., classes]; see `remembered_share`.

    Returns:
      Loss of each example [...], in [0, 2].

    Raises:
      ValueError: The shapes differ.

    References:
      Dong, Liu & Shang, 2022, "Toward Student-Oriented Teacher Network Training for Knowledge Distillation",
      https://arxiv.org/abs/2206.06661
    """
    logits, memory = as_logits(logits), as_float(remembered)
    if memory.shape != logits.shape:
        raise ValueError(f"remembered {list(memory.shape)} must have the shape of logits {list(logits.shape)}.")
    return jnp.sum((jax.nn.softmax(logits) - lax.stop_gradient(memory)) ** 2, axis=-1)


def remembered_share(visit: Array, average: str = "mean") -> Array:
    """Returns the share that an example's present output has in its memory, m <- (1 - share) m + share p.

    Args:
      visit: Number of times that the example has been seen [...], the present time included, from 1.
      average: 'mean' for 1 / visit, so that the memory is the mean of all outputs. 'released' for that of SoTeacher's
        code, 1 at the first visit and then 1 / (1 + visit), so that the first output counts twice.

    Raises:
      ValueError: The average is out of range.
    """
    check_range("average", average)
    visit = jnp.asarray(visit, float)
    return 1 / visit if average == "mean" else jnp.where(visit == 1, 1.0, 1 / (1 + visit))


def lipschitz(parameters: Mapping[str, Any], batch_statistics: Mapping[str, Any], *, epsilon: float = 1e-5) -> Array:
    """Computes SoTeacher's Lipschitz regularisation: a sum over all layers of a norm of each.

    A convolution counts with the sum of the absolute values of its kernel, BatchNorm with max_c |scale_c| /
    sqrt(variance_c + epsilon), a linear layer with the maximum over inputs of the sum over outputs of |kernel|, which
    is its operator norm for the 1-norm. Biases do not count. It is a sum, where a bound of the network's Lipschitz
    constant would be a product. Other layers with a scale, such as LayerNorm, do not count.

    Args:
      parameters: A network's parameters as flax has them: nested mappings of layers with 'kernel' [..., inputs,
        outputs] or 'scale' [channels].
      batch_statistics: Its running statistics, with the 'var' [channels] of each BatchNorm at the path of its scale. No
        gradient flows through them.
      epsilon: Added to the variance, as in BatchNorm itself.

    Returns:
      Loss [], at least 0.

    Raises:
      ValueError: There is no layer that counts.

    References:
      Dong, Liu & Shang, 2022, "Toward Student-Oriented Teacher Network Training for Knowledge Distillation",
      https://arxiv.org/abs/2206.06661
    """
    norms = list(_layer_norms(parameters, batch_statistics, epsilon))
    if not norms:
        raise ValueError("lipschitz: the network has no layer with a kernel, and no BatchNorm.")
    return add_up(norms)


def _layer_norms(parameters: Mapping[str, Any], statistics: Mapping[str, Any], epsilon: float) -> Iterator[Array]:
    """Yields the norm of each layer, from the leaves of nested mappings."""
    for name, leaf in parameters.items():
        if isinstance(leaf, Mapping):
            yield from _layer_norms(leaf, statistics.get(name, {}), epsilon)
        elif name == "kernel":
            size = jnp.abs(as_float(leaf))
            yield jnp.max(jnp.sum(size, axis=1)) if size.ndim == 2 else jnp.sum(size)
        elif name == "scale" and "var" in statistics:
            deviations = jnp.sqrt(as_float(lax.stop_gradient(statistics["var"])) + epsilon)
            slopes = jnp.abs(as_float(leaf)) / deviations
            yield slopes[jnp.argmax(slopes)]  # the gradient goes to one channel, also where two are equal


def student_branches(
    logits: Array,
    branches: Sequence[Array],
    labels: Array,
    *,
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    temperature: float = 1.0,
    direction: str = "to_branch",
) -> Array:
    """Computes the loss of a teacher's student branches: cross-entropy, and T^2 KL between branch and teacher.

    The loss is the sum over branches of ce_weight CE(branch, y) + kl_weight T^2 KL; the teacher's own cross-entropy is
    a loss of its own here. Gradients flow through the teacher as well: this is what fits it to the student.

    The paper's weights, temperature and direction of the KL were not recovered: they are settings, and the defaults are
    kdjax's.

    Args:
      logits: The teacher's logits [..., classes].
      branches: Logits [..., classes] of each branch, in which the student's later layers read a map of the teacher.
      labels: Integer labels [...] in [0, classes), or label probabilities [..., classes].
      ce_weight: Weight of each branch's cross-entropy.
      kl_weight: Weight of each branch's divergence.
      temperature: Temperature T of both sides of the divergence, above 0.
      direction: 'to_branch' for KL(teacher || branch), 'to_teacher' for KL(branch || teacher).

    Returns:
      Loss of each example [...] in nats. It is NaN for an integer label outside [0, classes).

    Raises:
      ValueError: There is no branch, the shapes do not match, or the temperature or the direction is out of range.

    References:
      Park, Cha, Jeong, Kim & Han, 2021, "Learning Student-Friendly Teacher Networks for Knowledge Distillation",
      https://arxiv.org/abs/2102.07650
    """
    check_range("direction", direction)
    if not branches:
        raise ValueError("student_branches: the network has no branches.")
    terms = []
    for branch in branches:
        sides = (branch, logits) if direction == "to_branch" else (logits, branch)
        divergence = kd(*sides, temperature=temperature)
        terms.append(ce_weight * cross_entropy(branch, labels) + kl_weight * divergence)
    return add_up(terms)
