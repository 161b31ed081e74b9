"""The label's class taken apart from the others, for the losses that treat it by itself."""

import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses._softmax import centred, log_sum


def is_label_of(labels: Array, logits: Array) -> tuple[Array, Array]:
    """Returns a boolean array [..., classes], true at the label, and whether each label is one of the classes [...]."""
    labels = jnp.asarray(labels)
    leading = logits.shape[:-1]
    if labels.shape != leading or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers {list(leading)} for logits {list(logits.shape)}, not {labels.dtype} "
            f"{list(labels.shape)}."
        )
    if logits.shape[-1] < 2:
        raise ValueError(f"logits {list(logits.shape)} must have at least two classes.")
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    return is_label, (labels >= 0) & (labels < logits.shape[-1])


def taken_apart(logits: Array, is_label: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Returns the two distributions into which a softmax at a temperature falls apart at the label.

    Returns:
      Centred logits of 'label' and 'any other class' [..., 2]; centred logits of the other classes [..., classes], -inf
      at the label; whether both are distributions [...].
    """
    # The label is excluded before the softmax, as log(1 - p_label) would lose all precision where p_label is nearly 1.
    top = lax.stop_gradient(jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1, keepdims=True))
    good = jnp.isfinite(top)
    logits = jnp.where(good, logits - top, 0) / temperature
    others = jnp.where(is_label, -jnp.inf, logits)
    label = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    two, two_good = centred(jnp.stack([label, log_sum(others)], axis=-1))
    return two, others, good[..., 0] & two_good
