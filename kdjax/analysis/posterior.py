"""How far a network's output lies from a known or measured posterior p*, and what of that is noise of the measurement.

Notation: q = softmax(logits), p* = posterior, e_y = one-hot label. A teacher's value is in how near its q is to p*:
for labels drawn from p*, both training losses are a distance to it plus a constant of the data (Hamidi et al., 2024),

    E_y |q - e_y|^2 = |q - p*|^2 + 1 - |p*|^2        E_y CE(e_y, q) = KL(p* || q) + H(p*).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.analysis._checks import as_logits, as_mask, as_posterior, as_raters, check_count, expectation
from kdjax.analysis.sums import in_parts, means, totals


def squared_distance(logits: Array, posterior: Array) -> Array:
    """Squared distance of the output to the posterior, sum_k (q_k - p*_k)^2.

    Args:
      logits: [batch, classes].
      posterior: [batch, classes], rows that sum to 1.

    Returns:
      [batch], in [0, 2].

    Raises:
      ValueError: the shapes differ, or a row is no distribution.
    """
    logits, posterior = _inputs(logits, posterior)
    return _measures(logits, posterior, -jnp.inf)["squared_distance"]


def posterior_sums(
    logits: Array,
    posterior: Array,
    mask: Array | None = None,
    *,
    raters: Any = None,
    log_floor: float = -np.inf,
) -> dict[str, tuple[Array, Array]]:
    """Totals of a batch for every distance between the output and the posterior; they add over batches and devices.

    Args:
      logits: [batch, classes].
      posterior: [batch, classes], p*, rows that sum to 1; known, or frequencies among raters.
      mask: [batch], the examples that count; None for all.
      raters: of how many labels each row of the posterior is the frequency, a number or [batch], at least 2; None for
        a posterior that is known. With it come 'sampling_noise' and 'squared_distance_corrected'.
      log_floor: what log p* is at least in KL(q || p*), which is infinite where a measured p* is 0; the toy code
        of the MSE teacher has -10.

    Returns:
      name -> (sum, count) over 'squared_distance', 'kl_posterior_network' KL(p* || q), 'kl_network_posterior'
      KL(q || p*), 'cross_entropy' -sum p* log q, 'posterior_entropy' H(p*), 'label_noise' 1 - |p*|^2,
      'squared_error' E_y |q - e_y|^2; entropies and divergences in nats. `means` finishes them.

    Raises:
      ValueError: the shapes do not fit, a row is no distribution, or there are too few raters.
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
    logits: Array, posterior: Array, mask: Array | None = None, *, raters: Any = None, **options: Any
) -> dict[str, float]:
    """Means over whole arrays of all that `posterior_sums` adds up.

    Args:
      logits: [batch, classes].
      posterior: [batch, classes], rows that sum to 1.
      mask: [batch], the examples that count; None for all.
      raters: as `posterior_sums` takes them.
      **options: its others.

    Returns:
      name -> number.

    Raises:
      ValueError: of `posterior_sums`.
    """

    def measure(logits: Array, posterior: Array, mask: Array | None, raters: Any) -> dict:
        return posterior_sums(logits, posterior, mask, raters=raters, **options)

    return means(in_parts(measure, logits, posterior, mask, raters))


def decomposition(scores: dict[str, float]) -> dict[str, float]:
    """Parts of the expected training losses: distance to the posterior, and what no network can be rid of.

    Args:
      scores: the means of `posterior_sums`.

    Returns:
      'squared_error' = 'squared_distance' + 'label_noise' and 'cross_entropy' = 'kl_posterior_network' +
      'posterior_entropy', the six of them; each whole is the sum of its parts, so what was measured directly can be
      held against it.
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


def reference_code_distance(totals: dict[str, tuple[Array, Array]]) -> float:
    """Distance as the released toy code of the MSE teacher plots it: a Frobenius norm that grows with the set.

    Args:
      totals: of `posterior_sums`.

    Returns:
      sqrt(sum over examples and classes of (q - p*)^2), called a mean squared error there (Hamidi et al., 2024).
    """
    return float(np.sqrt(np.float64(totals["squared_distance"][0])))


def from_counts(counts: Array) -> tuple[Array, Array]:
    """Frequencies and number of raters of a table of votes.

    Args:
      counts: [batch, classes], how many raters chose each class.

    Returns:
      Frequencies [batch, classes], NaN for a row without votes, and raters [batch].

    Raises:
      ValueError: counts are not [batch, classes].
    """
    counts = as_logits(counts, "counts")
    raters = jnp.sum(counts, axis=-1)
    return counts / jnp.where(raters > 0, raters, jnp.nan)[:, None], raters


def sampling_noise(posterior: Array, raters: Any) -> Array:
    """Expected squared distance between the frequencies among n raters and the posterior, (1 - |p*|^2) / n.

    What a perfect network would score against frequencies of n labels drawn from p*.

    Args:
      posterior: [batch, classes], the true p*, rows that sum to 1.
      raters: n, at least 1, a number or [batch].

    Returns:
      [batch].

    Raises:
      ValueError: not [batch, classes], a row is no distribution, or no rater.
    """
    posterior = as_posterior(posterior)
    return _label_noise(posterior) / as_raters(raters, posterior, least=1)


def sampling_noise_estimate(frequencies: Array, raters: Any) -> Array:
    """The same from the frequencies themselves, without bias, (1 - |p_hat|^2) / (n - 1).

    E (1 - |p_hat|^2) = (1 - |p*|^2) (n - 1) / n. Taken off a squared distance to the frequencies it leaves, on
    average, the squared distance to p*; for one example it may be larger than the distance.

    Args:
      frequencies: [batch, classes] among n raters, rows that sum to 1.
      raters: n, at least 2, a number or [batch].

    Returns:
      [batch]; NaN for fewer raters, where a compiled function cannot refuse them.

    Raises:
      ValueError: not [batch, classes], a row is no distribution, or fewer than two raters.
    """
    frequencies = as_posterior(frequencies)
    return _noise_estimate(frequencies, as_raters(raters, frequencies, least=2))


def rounding_noise(num_classes: int, step: float) -> float:
    """Expected squared distance that rounding to multiples of a step adds, classes * step^2 / 12.

    Args:
      num_classes: at least 1.
      step: above 0, such as 0.01 for two decimals or 1 / 255 for bytes.

    Returns:
      The mean for probabilities spread evenly within a step; at most three times that for any others.

    Raises:
      ValueError: out of range.
    """
    check_count("num_classes", num_classes)
    if not 0 < step < np.inf:
        raise ValueError(f"step must be above 0, not {step!r}.")
    return num_classes * step**2 / 12


def _inputs(logits: Any, posterior: Any, mask: Any = None) -> tuple[Array, Array]:
    logits = as_logits(logits)
    posterior = as_posterior(posterior, mask, logits)
    dtype = jnp.promote_types(logits.dtype, posterior.dtype)
    return logits.astype(dtype), posterior.astype(dtype)


@jax.jit
def _measures(logits: Array, posterior: Array, log_floor: float) -> dict[str, Array]:
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
    return jnp.sum(posterior * (1 - posterior), axis=-1)  # 1 - |p|^2, without its cancellation near one-hot rows


@jax.jit
def _noise_estimate(frequencies: Array, raters: Array) -> Array:
    return _label_noise(frequencies) / jnp.where(raters > 1, raters - 1, jnp.nan)
