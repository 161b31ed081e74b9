"""Checks that every statistic makes on its arguments: shapes, labels that are classes, posteriors that sum to 1."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from kdjax.losses._checks import as_float, expectation

__all__ = ["as_float", "as_labels", "as_logits", "as_mask", "as_pair", "as_posterior", "as_raters", "expectation"]


def is_concrete(*arrays: Any) -> bool:
    """Returns whether all arrays have values, which they do not while a function is compiled."""
    return not any(isinstance(array, Tracer) for array in arrays)


def show(array: Any) -> str:
    """Returns the shape of an array as error messages print it."""
    return str(list(np.shape(array)))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the choices.

    Raises:
      ValueError: The message has the argument's name, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses a value that is not an integer of at least `least`.

    Raises:
      ValueError: The message has the argument's name, its range and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}, not {value!r}.")


def as_logits(logits: ArrayLike, name: str = "logits") -> Array:
    """Returns logits [batch, classes] in float32 or wider.

    Args:
      logits: Array to check.
      name: Name of the argument, for the error message.

    Raises:
      ValueError: The array does not have two axes, or has no class. The message has its shape.
    """
    logits = as_float(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must be [batch, classes], not {show(logits)}.")
    return logits


def as_mask(mask: ArrayLike | None, array: Array) -> Array:
    """Returns a boolean mask [batch]; None becomes a mask that is true everywhere.

    Args:
      mask: Mask [batch], or None.
      array: Array [batch, ...] whose batch size the mask must have.

    Raises:
      ValueError: The mask has another shape. The message has both shapes.
    """
    if mask is None:
        return jnp.ones(array.shape[0], bool)
    mask = jnp.asarray(mask)
    if mask.shape != array.shape[:1]:
        raise ValueError(f"mask must be [batch], not {show(mask)} beside logits {show(array)}.")
    return mask.astype(bool)


def as_pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Returns the logits of two networks, both [batch, classes] and of one shape, in float32 or wider.

    Raises:
      ValueError: One of the two is not [batch, classes], or their shapes differ. The message has both shapes.
    """
    first, second = as_logits(first, "first_logits"), as_logits(second, "second_logits")
    if first.shape != second.shape:
        raise ValueError(
            f"first_logits {show(first)} and second_logits {show(second)} must have one shape [batch, classes]."
        )
    return first, second


def as_labels(labels: ArrayLike, logits: Array, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Returns integer labels [batch], and the mask [batch] of the examples to count.

    A compiled function cannot raise an error that depends on values. There, an example whose label is not a class is
    masked, so that only the counts show it.

    Args:
      labels: Integer labels [batch].
      logits: Logits [batch, classes].
      mask: Mask [batch] of the examples that count; None counts all.

    Raises:
      ValueError: The labels are not integers [batch], or, outside compiled functions, an unmasked label is not in
        [0, classes).
    """
    mask, labels = as_mask(mask, logits), jnp.asarray(labels)
    classes = logits.shape[1]
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers [batch], not {labels.dtype} {show(labels)} beside {show(logits)}.")
    if not is_concrete(labels, mask):
        return labels, mask & (labels >= 0) & (labels < classes)
    counted = np.asarray(labels)[np.asarray(mask)]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not one of the {classes} classes of logits {show(logits)}; mask it out.")
    return labels, mask


def as_posterior(posterior: ArrayLike, mask: ArrayLike | None = None, logits: Array | None = None) -> Array:
    """Returns a posterior [batch, classes], rows that sum to 1, in float32 or wider.

    Args:
      posterior: Probabilities [batch, classes].
      mask: Mask [batch] of the rows to check; None checks all.
      logits: Logits [batch, classes] whose shape the posterior must have, or None.

    Raises:
      ValueError: The shape is another one, or, outside compiled functions, an unmasked row has a negative entry or does
        not sum to 1 within 1e-3 (within the precision of its type, where that is coarser, as in bfloat16).
    """
    posterior = jnp.asarray(posterior)
    floating = jnp.issubdtype(posterior.dtype, jnp.floating)
    tolerance = max(1e-3, float(jnp.finfo(posterior.dtype).eps)) if floating else 1e-3
    posterior = as_float(posterior)
    if posterior.ndim != 2 or posterior.shape[1] == 0 or (logits is not None and posterior.shape != logits.shape):
        beside = "" if logits is None else f" beside logits {show(logits)}"
        raise ValueError(f"posterior must be [batch, classes], not {show(posterior)}{beside}.")
    mask = as_mask(mask, posterior)
    if is_concrete(posterior, mask):
        _check_distributions(np.asarray(posterior, np.float64)[np.asarray(mask)], tolerance, show(posterior))
    return posterior


def _check_distributions(rows: np.ndarray, tolerance: float, shape: str) -> None:
    """Refuses rows that are negative or whose sum is not within `tolerance` of 1."""
    sums = rows.sum(axis=-1)
    wrong = ~((rows >= 0).all(axis=-1) & (np.abs(sums - 1) <= tolerance))
    if wrong.any():
        raise ValueError(
            f"posterior {shape} has a row that is not a distribution: sum {sums[wrong][0]:.6g}, "
            f"smallest entry {rows[wrong][0].min():.6g}."
        )


def as_raters(raters: ArrayLike, posterior: Array, least: int, mask: ArrayLike | None = None) -> Array:
    """Returns the number of raters, [] or [batch], as floats.

    Args:
      raters: Number of raters, one for all examples or one for each [batch].
      posterior: Posterior [batch, classes] that the raters were asked for.
      least: Smallest number of raters that is allowed.
      mask: Mask [batch] of the examples to check; None checks all.

    Raises:
      ValueError: The shape is another one, or, outside compiled functions, an unmasked example has fewer than `least`
        raters.
    """
    raters = jnp.asarray(raters).astype(posterior.dtype)
    if raters.shape not in ((), posterior.shape[:1]):
        raise ValueError(f"raters must be a number or [batch], not {show(raters)} beside {show(posterior)}.")
    mask = as_mask(mask, posterior)
    if is_concrete(raters, mask):
        few = np.broadcast_to(~(np.asarray(raters) >= least), mask.shape) & np.asarray(mask)
        if few.any():
            fewest = np.broadcast_to(raters, mask.shape)[few].min()
            raise ValueError(f"raters must be at least {least} for every example, not {fewest:g}.")
    return raters
