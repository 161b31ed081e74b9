"""An average of a network's weights along the way: after every update (EMA) or at the end of every epoch (SWA)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import Array


def start(params: Any, config: Mapping[str, Any]) -> Any:
    """Returns the average before the first update: the initial weights, or {} for a run that has no average."""
    return params if config["average"]["name"] else {}


def update(average: Any, params: Any, updates: Array, config: Mapping[str, Any], steps_per_epoch: int) -> Any:
    """Returns the average after an update.

    Until the end of epoch `start` it is the weights themselves. After that, EMA is decay * average + (1 - decay) *
    weights after every update; SWA is the mean of the weights at the ends of the epochs after `start` (Izmailov,
    Podoprikhin, Garipov, Vetrov & Wilson, 2018, "Averaging Weights Leads to Wider Optima and Better Generalization").

    Args:
      average: The average before the update; {} for a run that has none.
      params: The weights after the update.
      updates: [] integer, updates of training proper that were made, this one included.
      config: The traced sections of the config.
      steps_per_epoch: Updates in an epoch.
    """
    fields = config["average"]
    if not fields["name"]:
        return average
    since = updates - fields["start"] * steps_per_epoch
    if fields["name"] == "ema":
        share = 1 - fields["decay"]
    else:
        epochs = jnp.maximum(since // steps_per_epoch, 1)
        share = jnp.where(since % steps_per_epoch == 0, 1 / epochs, 0.0)
    share = jnp.where(since <= 0, 1.0, share)

    def mix(old: Array, new: Array) -> Array:
        # A share of 1 must give the weights to the bit, which old + 1 * (new - old) would not.
        return jnp.where(share == 1, new, old + share.astype(old.dtype) * (new - old))

    return jax.tree.map(mix, average, params)
