"""How far a network's output lies from a known or measured posterior p*, and how much of that is measurement noise.

Notation: q = softmax(logits), p* = posterior, e_y = one-hot label. For labels drawn from p*, both training losses are
a distance between q and p* plus a constant of the data, so a good teacher has a small distance (Hamidi et al., 2024):

    E_y |q - e_y|^2 = |q - p*|^2 + 1 - |p*|^2        E_y CE(e_y, q) = KL(p* || q) + H(p*).

Reference: Hamidi, Deng, Tan, Ye & Salamah, 2024, "How to Train the Teacher Model for Effective Knowledge Distillation",
https://arxiv.org/abs/2407.18041
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from kdjax.analysis._checks import as_logits, as_mask, as_posterior, as_raters, check_count, expectation
from kdjax.analysis.sums import Totals, in_parts, means, totals


def squared_distance(logits: Array, posterior: Array) -> Array:
    """Returns the squared distance between the output and the posterior, sum_k (q_k - p*_k)^2.

    Args:
      logits: Logits [batch, classes].
      posterior: Posterior p* [batch, classes], rows that sum to 1.

    Returns:
      Squared distance of each example [batch], in [0, 2].

    Raises:
      ValueError: The shapes differ, or a row is not a distribution.
    """
    logits, posterior = _inputs(logits, posterior)
    return _measures(logits, posterior, -jnp.inf)["squared_distance"]


def posterior_sums(
    logits: Array,
    posterior: Array,
    mask: Array | None = None,
    *,
    raters: ArrayLike | None = None,
    log_floor: float = -np.inf,
) -> dict[str, tuple[Array, Array]]:
    """Returns a batch's totals of every distance between the output and the posterior; they add over batches.

    Args:
      logits: Logits [batch, classes].
      posterior: Posterior p* [batch, classes], rows that sum to 1: known, or the frequencies of raters' answers.
      mask: Mask [batch] of the examples that count; None counts all.
      raters: Number of raters, at least 2, whose answers' frequencies the posterior is: one number, or one for each
        example [batch]. None for a known posterior. If given, 'sampling_noise' and 'squared_distance_corrected' are
        returned too.
      log_floor: Lower bound of log p* in KL(q || p*), which is infinite where a measured p* is 0. The toy code of
        Hamidi et al. (2024) has -10.

    Returns:
      Mapping of name -> (sum, count), which `means` turns into means; entropies and divergences are in nats.
      'squared_distance' |q - p*|^2; 'kl_posterior_network' KL(p* || q); 'kl_network_posterior' KL(q || p*);
      'cross_entropy' -sum p* log q; 'posterior_entropy' H(p*); 'label_noise' 1 - |p*|^2; 'squared_error'
      E_y |q - e_y|^2.

    Raises:
      ValueError: The shapes do not match, a row is not a distribution, or there are too few raters.
    """
    logits, posterior = _inputs(logits, posterior, mask)
    mask = as_mask(mask, logits)
    values = _measures(logits, posterior, log_floor)
    if raters is not None:
        noise = _noise_estimate(posterior, as_raters(raters, posterior, least=2, mask=mask))
        values["sampling_noise"] = noise
        values["squared_distance_corrected"] = values["squared_distance"] - noise
    return totals(values, mask)


def posterior_scores(
    logits: Array,
    posterior: Array,
    mask: Array | None = None,
    *,
    raters: ArrayLike | None = None,
    log_floor: float = -np.inf,
) -> dict[str, float]:
    """Returns the means over whole arrays of everything that `posterior_sums` adds up.

    Args:
      logits: Logits [examples, classes].
      posterior: Posterior p* [examples, classes], rows that sum to 1.
      mask: Mask [examples] of the examples that count; None counts all.
      raters: Number of raters, one or for each example; see `posterior_sums`.
      log_floor: Lower bound of log p* in KL(q || p*); see `posterior_sums`.

    Returns:
      Mapping of name -> mean.

    Raises:
      ValueError: An argument is refused by `posterior_sums`.
    """

    def measure(logits: Array, posterior: Array, mask: Array | None, raters: ArrayLike | None) -> Totals:
        return posterior_sums(logits, posterior, mask, raters=raters, log_floor=log_floor)

    return means(in_parts(measure, logits, posterior, mask, raters))


def decomposition(scores: dict[str, float]) -> dict[str, float]:
    """Splits the expected training losses into a distance to the posterior and a constant that no network can reduce.

    Args:
      scores: Means of the totals of `posterior_sums`.

    Returns:
      Mapping of six names: 'squared_error' = 'squared_distance' + 'label_noise', and 'cross_entropy' =
      'kl_posterior_network' + 'posterior_entropy'. Both sums are computed from their parts, so that they can be
      compared with the values that were measured directly.
    """
    squared, divergence = scores["squared_distance"], scores["kl_posterior_network"]
    noise, entropy = scores["label_noise"], scores["posterior_entropy"]
    return {
        "squared_distance": squared,
        "label_noise": noise,
        "squared_error": squared + noise,
        "kl_posterior_network": divergence,
        "posterior_entropy": entropy,
        "cross_entropy": divergence + entropy,
    }


def reference_code_distance(totals: Totals) -> float:
    """Returns the distance that the toy code of Hamidi et al. (2024) plots, a norm that grows with the size of the set.

    Args:
      totals: Totals of `posterior_sums`.

    Returns:
      sqrt(sum over examples and classes of (q - p*)^2); that code calls it a mean squared error.
    """
    return float(np.sqrt(np.asarray(totals["squared_distance"][0], np.float64)))


def from_counts(counts: Array) -> tuple[Array, Array]:
    """Returns the frequencies and the numbers of raters of a table of votes.

    Args:
      counts: Number of raters [batch, classes] who chose each class.

    Returns:
      Frequencies [batch, classes], NaN in a row without votes, and numbers of raters [batch].

    Raises:
      ValueError: The counts are not [batch, classes].
    """
    counts = as_logits(counts, "counts")
    raters = jnp.sum(counts, axis=-1)
    return counts / jnp.where(raters > 0, raters, jnp.nan)[:, None], raters


def sampling_noise(posterior: Array, raters: ArrayLike) -> Array:
    """Returns the expected squared distance between the frequencies of n raters and the posterior, (1 - |p*|^2) / n.

    This is the squared distance that a perfect network would have to frequencies of n labels drawn from p*.

    Args:
      posterior: True posterior p* [batch, classes], rows that sum to 1.
      raters: Number n of raters, at least 1: one number, or one for each example [batch].

    Returns:
      Noise of each example [batch], in [0, 1).

    Raises:
      ValueError: The posterior is not [batch, classes], a row is not a distribution, or there is no rater.
    """
    posterior = as_posterior(posterior)
    return _label_noise(posterior) / as_raters(raters, posterior, least=1)


def sampling_noise_estimate(frequencies: Array, raters: ArrayLike) -> Array:
    """Returns an unbiased estimate of `sampling_noise` from frequencies f of n raters, (1 - |f|^2) / (n - 1).

    It is unbiased since E (1 - |f|^2) = (1 - |p*|^2) (n - 1) / n. A squared distance to the frequencies minus this
    estimate is, on average, the squared distance to p*; for a single example it may be negative.

    Args:
      frequencies: Frequencies f of the raters' answers [batch, classes], rows that sum to 1.
      raters: Number n of raters, at least 2: one number, or one for each example [batch].

    Returns:
      Estimate for each example [batch]. In a compiled function, which cannot refuse it, an example with fewer than two
      raters has NaN.

    Raises:
      ValueError: The frequencies are not [batch, classes], a row is not a distribution, or there are fewer than two
        raters.
    """
    frequencies = as_posterior(frequencies)
    return _noise_estimate(frequencies, as_raters(raters, frequencies, least=2))


def rounding_noise(num_classes: int, step: float) -> float:
    """Returns the expected squared distance that rounding to multiples of a step adds, classes * step^2 / 12.

    Args:
      num_classes: Number of classes, at least 1.
      step: Step, above 0, such as 0.01 for two decimals or 1 / 255 for bytes.

    Returns:
      Mean for probabilities that are spread evenly within a step; for any others it is at most three times that.

    Raises:
      ValueError: An argument is out of range.
    """
    check_count("num_classes", num_classes)
    if not 0 < step < np.inf:
        raise ValueError(f"step must be above 0, not {step!r}.")
    return num_classes * step**2 / 12


def _inputs(logits: ArrayLike, posterior: ArrayLike, mask: ArrayLike | None = None) -> tuple[Array, Array]:
    """Returns checked logits and posterior [batch, classes] in one precision."""
    logits = as_logits(logits)
    posterior = as_posterior(posterior, mask, logits)
    dtype = jnp.promote_types(logits.dtype, posterior.dtype)
    return logits.astype(dtype), posterior.astype(dtype)


@jax.jit
def _measures(logits: Array, posterior: Array, log_floor: float) -> dict[str, Array]:
    """Returns each measure of `posterior_sums` that needs no raters, by name, for each example [batch]."""
    log_q, log_p = jax.nn.log_softmax(logits), jnp.log(posterior)
    q = jnp.exp(log_q)
    return {
        "squared_distance": jnp.sum((q - posterior) ** 2, axis=-1),
        "kl_posterior_network": expectation(posterior, log_p - log_q),
        "kl_network_posterior": expectation(q, log_q - jnp.maximum(log_p, log_floor)),
        "cross_entropy": -expectation(posterior, log_q),
        "posterior_entropy": -expectation(posterior, log_p),
        "label_noise": _label_noise(posterior),
        "squared_error": jnp.sum(q**2, axis=-1) - 2 * jnp.sum(q * posterior, axis=-1) + jnp.sum(posterior, axis=-1),
    }


@jax.jit
def _label_noise(posterior: Array) -> Array:
    # Equal to 1 - |p|^2, which would lose its digits by cancellation for a row that is almost one-hot.
    return jnp.sum(posterior * (1 - posterior), axis=-1)


@jax.jit
def _noise_estimate(frequencies: Array, raters: Array) -> Array:
    return _label_noise(frequencies) / jnp.where(raters > 1, raters - 1, jnp.nan)
