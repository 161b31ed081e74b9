"""What every statistic does at its door: shapes, labels that exist, posteriors that are distributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses._checks import as_float, as_logits, as_mask, expectation

__all__ = ["as_float", "as_labels", "as_logits", "as_mask", "as_pair", "as_posterior", "as_raters", "expectation"]


def is_seen(*arrays: Any) -> bool:
    """Returns whether values can be looked at, that is outside a compiled function."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def show(array: Any) -> str:
    """Returns the shape as it is printed in messages."""
    return str(list(np.shape(array)))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses a word that is none of the choices.

    Raises:
      ValueError: names the argument, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is not an integer of at least `least`.

    Raises:
      ValueError: names the argument, the range and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}, not {value!r}.")


def as_pair(first: Any, second: Any) -> tuple[Array, Array]:
    """Returns two runs' logits, both `[batch, classes]` and of one shape.

    Raises:
      ValueError: they are not; prints both shapes.
    """
    first, second = as_logits(first, "first_logits"), as_logits(second, "second_logits")
    if first.shape != second.shape:
        raise ValueError(
            f"first_logits {show(first)} and second_logits {show(second)} must have one shape [batch, classes]."
        )
    return first, second


def as_labels(labels: Any, logits: Array, mask: Any) -> tuple[Array, Array]:
    """Returns `[batch]` labels and the mask without the examples whose label no class has.

    Values cannot be refused inside a compiled function: there such examples are left out, and the counts tell.

    Raises:
      ValueError: another shape, no integers, or, where values can be seen, an unmasked label outside [0, classes).
    """
    mask, labels = as_mask(mask, logits), jnp.asarray(labels)
    classes = logits.shape[1]
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers [batch], not {labels.dtype} {show(labels)} beside {show(logits)}.")
    if not is_seen(labels, mask):
        return labels, mask & (labels >= 0) & (labels < classes)
    counted = np.asarray(labels)[np.asarray(mask)]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is none of the {classes} classes of logits {show(logits)}; mask it out.")
    return labels, mask


def as_posterior(posterior: Any, mask: Any = None, logits: Array | None = None) -> Array:
    """Returns `[batch, classes]` probabilities in float32 at least.

    Raises:
      ValueError: another shape than the logits', or, where values can be seen, an unmasked row that is negative or
        does not sum to 1 within 1e-3, or within the precision of its own type where that is coarser (bfloat16).
    """
    posterior = jnp.asarray(posterior)
    inexact = jnp.issubdtype(posterior.dtype, jnp.floating)
    tolerance = max(1e-3, float(jnp.finfo(posterior.dtype).eps)) if inexact else 1e-3
    posterior = as_float(posterior)
    if posterior.ndim != 2 or posterior.shape[1] == 0 or (logits is not None and posterior.shape != logits.shape):
        beside = "" if logits is None else f" beside logits {show(logits)}"
        raise ValueError(f"posterior must be [batch, classes], not {show(posterior)}{beside}.")
    mask = as_mask(mask, posterior)
    if is_seen(posterior, mask):
        rows = np.asarray(posterior, np.float64)[np.asarray(mask)]
        sums = rows.sum(axis=-1)
        right = (rows >= 0).all(axis=-1) & (np.abs(sums - 1) <= tolerance)
        if not right.all():
            raise ValueError(
                f"posterior {show(posterior)} has a row that is no distribution: sum {sums[~right][0]:.6g}."
            )
    return posterior


def as_raters(raters: Any, posterior: Array, least: int, mask: Any = None) -> Array:
    """Returns the number of raters, a scalar or `[batch]`, as a float.

    Raises:
      ValueError: another shape, or, where values can be seen, fewer than `least` for an unmasked example.
    """
    raters = jnp.asarray(raters).astype(posterior.dtype)
    if raters.shape not in ((), posterior.shape[:1]):
        raise ValueError(f"raters must be a number or [batch], not {show(raters)} beside {show(posterior)}.")
    mask = as_mask(mask, posterior)
    if is_seen(raters, mask):
        few = np.broadcast_to(~(np.asarray(raters) >= least), mask.shape) & np.asarray(mask)
        if few.any():
            least_given = np.broadcast_to(raters, mask.shape)[few].min()
            raise ValueError(f"raters must be at least {least} for every example, not {least_given:g}.")
    return raters
