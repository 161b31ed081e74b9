"""Evaluation of a network on the splits of a data set that lives on the devices."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax.data import Dataset, eval_batches
from kdjax.training import metrics, parallel, steps
from kdjax.training.steps import EvalSpec
from kdjax.types import Batch


class _Identity:
    """Hashes an array by identity and keeps it alive, so that its place on the devices can be remembered."""

    def __init__(self, array):
        self.array = array

    def __hash__(self):
        return id(self.array)

    def __eq__(self, other):
        return self.array is other.array


def resident(dataset: Dataset, devices: Sequence[jax.Device]) -> dict:
    """Places a data set on the devices in its stored type, once for all runs of the process over the same arrays."""
    arrays = (dataset.images, dataset.labels, dataset.soft)
    return _place(*(_Identity(array) for array in arrays), tuple(devices))


@functools.lru_cache(maxsize=2)
def _place(images: _Identity, labels: _Identity, soft: _Identity, devices: tuple) -> dict:
    arrays = {"images": images.array, "labels": labels.array}
    if soft.array is not None:
        arrays["soft"] = soft.array
    return parallel.replicate(arrays, devices)


@functools.lru_cache(maxsize=64)
def _compiled(spec: EvalSpec, devices: tuple):
    body = functools.partial(steps.eval_steps, spec=spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, devices)


def evaluate(
    model: Any, variables: Mapping, dataset: Dataset, split: str, batch_size: int, devices: Sequence[jax.Device]
) -> dict[str, float]:
    """Returns the means of loss (cross-entropy), accuracy and, above five classes, top-5 over a whole split.

    Args:
      model: network.
      variables: {'params': ..., 'batch_stats': ...}, on the devices or the host.
      dataset: with the split.
      split: 'train', 'validation' or 'test'; never augmented, the last partial batch included.
      batch_size: over all devices, a multiple of their number.
      devices: of this process.
    """
    spec = EvalSpec(model, dataset.stored, dataset.num_classes)
    index, mask = eval_batches(dataset.splits[split], batch_size)
    batches = make_batches(index, mask, 0, devices)
    sums = _compiled(spec, tuple(devices))(variables, resident(dataset, devices), batches)
    return metrics.means(jax.device_get(sums).metrics)


def make_batches(index: np.ndarray, mask: np.ndarray, epoch: int, devices: Sequence[jax.Device]) -> Batch:
    """Makes what one dispatch takes of `[steps, batch]` indices and mask: leaves `[devices, steps, ...]`."""
    index, mask = parallel.split(index, devices), parallel.split(mask, devices)
    epochs = np.full(index.shape[:2], epoch, np.int32)
    return Batch(index=index, epoch=epochs, mask=mask, labelled=np.ones_like(mask))
