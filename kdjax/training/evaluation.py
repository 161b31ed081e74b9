"""Evaluation of a network on the splits of a data set, resident on the devices or streamed."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from kdjax.data import Dataset, eval_batches
from kdjax.data.encoded import Encoded
from kdjax.data.keeping import PART_OF_MEMORY
from kdjax.data.stream import eval_stream
from kdjax.errors import UserError
from kdjax.training import metrics, parallel, steps
from kdjax.training.identity import ByIdentity
from kdjax.training.spec import EvalSpec, Model
from kdjax.types import Array, Batch, Device


def resident(dataset: Dataset, devices: Sequence[Device]) -> dict[str, Array] | None:
    """Places a data set on the devices in its stored type, once for all runs of the process over the same arrays.

    Returns:
      'images', 'labels' and, where the data has distributions, 'soft'; None for a set that is streamed.
    """
    if dataset.streamed:
        return None
    devices = tuple(devices)
    targets = {"labels": dataset.labels} | ({} if dataset.soft is None else {"soft": dataset.soft})
    placed = {name: _place_targets(ByIdentity(array), devices) for name, array in targets.items()}
    return {"images": _place_images(ByIdentity(dataset.images), devices), **placed}


@functools.lru_cache(maxsize=2)
def _place_images(images: ByIdentity, devices: tuple) -> Array:
    return parallel.replicate(images.value, devices)


@functools.lru_cache(maxsize=8)  # experiments on one set of images may differ in its labels
def _place_targets(targets: ByIdentity, devices: tuple) -> Array:
    return parallel.replicate(targets.value, devices)


def stream_if_needed(dataset: Dataset, stream: str, devices: Sequence[Device]) -> Dataset:
    """Returns the data set, marked as streamed, with a warning, where it does not fit on the devices.

    Args:
      dataset: Loaded data.
      stream: config.data.stream.
      devices: Devices that would hold it.

    Raises:
      UserError: It does not fit and must not be streamed.
    """
    if dataset.streamed or isinstance(dataset.images, Encoded):
        return dataset
    size, room = dataset.images.nbytes, int(PART_OF_MEMORY * parallel.memory(devices))
    if size <= room:
        return dataset
    line = f"data set '{dataset.name}' takes {size / 1e9:.2f} GB, and {room / 1e9:.2f} GB of each device are for data"
    if stream == "never":
        raise UserError(f"{line}; leave config.data.stream at 'auto'.")
    logging.warning("%s: it is streamed.", line)
    return dataclasses.replace(dataset, streamed=True)


@functools.lru_cache(maxsize=64)
def _compiled(spec: EvalSpec, devices: tuple) -> Callable[..., metrics.Sums]:
    body = functools.partial(steps.eval_steps, spec=spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, devices)


def evaluate(
    model: Model,
    variables: Mapping[str, Any],
    dataset: Dataset,
    split: str,
    batch_size: int,
    devices: Sequence[Device],
) -> dict[str, float]:
    """Returns the means of `metrics.eval_metrics` over a whole split, see `split_sums` for the arguments.

    These are loss (cross-entropy), accuracy and Brier score; top-5 above five classes; where the data has
    distributions, the mean squared distance to them, summed over classes; where a protocol hides classes, the
    accuracies of seen and unseen ones; for the test split, the accuracy without the data set's `shared_test` rows,
    unless that is None.
    """
    return metrics.means(jax.device_get(split_sums(model, variables, dataset, split, batch_size, devices)).metrics)


def split_sums(
    model: Model,
    variables: Mapping[str, Any],
    dataset: Dataset,
    split: str,
    batch_size: int,
    devices: Sequence[Device],
) -> metrics.Sums:
    """Dispatches the evaluation of a network on a whole split and returns its sums, not fetched.

    Args:
      model: The network.
      variables: {'params': ..., 'batch_stats': ...}, on the devices or the host.
      dataset: Data with the split.
      split: 'train', 'validation' or 'test'; never augmented, and the last partial batch counts.
      batch_size: Examples over all devices, a multiple of their number.
      devices: Devices of this process.
    """
    spec = _eval_spec(model, dataset, split)
    index, mask = _eval_rows(dataset, split, batch_size, devices)
    score = functools.partial(_compiled(spec, tuple(devices)), variables, resident(dataset, devices))
    if dataset.streamed:
        parts = [jax.device_get(score(part)) for part in streamed_batches(dataset, index, mask, devices)]
        return functools.reduce(metrics.merge, parts)
    return score(make_batches(index, mask, 0, devices))


def stack_batches(datasets: Sequence[Dataset], split: str, batch_size: int, devices: Sequence[Device]) -> Batch:
    """Returns the batches of a split of several data sets that `stacked_sums` takes, `[devices, members, steps, ...]`.

    Args:
      datasets: The data set of each member: the same arrays, with splits of the same sizes.
      split: 'train', 'validation' or 'test'.
      batch_size: Examples over all devices, a multiple of their number.
      devices: Devices of this process.
    """
    parts = [make_batches(*_eval_rows(dataset, split, batch_size, devices), 0, devices) for dataset in datasets]
    leaves = {name: [getattr(part, name) for part in parts] for name in Batch._fields}
    return Batch(**{name: each[0] if each[0] is None else np.stack(each, axis=1) for name, each in leaves.items()})


def stacked_sums(
    model: Model,
    variables: Mapping[str, Any],
    dataset: Dataset,
    split: str,
    batches: Batch,
    devices: Sequence[Device],
) -> metrics.Sums:
    """Dispatches the evaluation of stacked networks, each on its own split, and returns stacked sums, not fetched.

    Args:
      model: The network of all.
      variables: Their variables, leaves [members, ...] on the devices.
      dataset: The data set of any of them.
      split: 'train', 'validation' or 'test'.
      batches: What `stack_batches` returned.
      devices: Devices of this process.
    """
    run = _compiled_stacked(_eval_spec(model, dataset, split), tuple(devices))
    return run(variables, resident(dataset, devices), batches)


@functools.lru_cache(maxsize=64)
def _compiled_stacked(spec: EvalSpec, devices: tuple) -> Callable[..., metrics.Sums]:
    def body(variables: Mapping[str, Any], arrays: Any, batches: Batch) -> metrics.Sums:
        score = functools.partial(steps.eval_steps, spec=spec, axis_name=parallel.AXIS)
        return jax.vmap(score, in_axes=(0, None, 0))(variables, arrays, batches)

    return parallel.data_parallel(body, devices)


def _eval_spec(model: Model, dataset: Dataset, split: str) -> EvalSpec:
    shared = None
    if split == "test" and dataset.shared_test is not None:
        shared = tuple(dataset.shared_test.tolist())
    return EvalSpec(model, dataset.stored, dataset.num_classes, dataset.unseen, dataset.soft is not None, shared)


def _eval_rows(
    dataset: Dataset, split: str, batch_size: int, devices: Sequence[Device]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and mask [steps, batch] of a split's labelled examples; small splits are not filled to a batch."""
    rows = dataset.splits[split]
    rows = rows[dataset.labelled[rows]]
    count = parallel.device_count(devices)
    least = -(-len(rows) // count) * count
    return eval_batches(rows, min(batch_size, least))


def streamed_batches(
    dataset: Dataset, index: np.ndarray, mask: np.ndarray, devices: Sequence[Device]
) -> Iterator[Batch]:
    """Yields batches of one step that carry their images; an image that cannot be read is masked.

    Each process reads its own part of every batch.
    """
    index, mask = parallel.own_share(index), parallel.own_share(mask)
    targets = (dataset.labels, dataset.soft)
    for i, pixels in enumerate(eval_stream(dataset, index)):
        batch = _deal_batches(index[i : i + 1], mask[i : i + 1] & pixels.good, 0, devices)
        labels, soft = (None if one is None else parallel.deal(one[index[i : i + 1]], devices) for one in targets)
        yield batch._replace(images=parallel.deal(pixels.images[None], devices), labels=labels, soft=soft)


def make_batches(index: np.ndarray, mask: np.ndarray, epoch: int, devices: Sequence[Device]) -> Batch:
    """Makes the batches of one dispatch from `[steps, batch]` rows and mask; leaves are `[devices, steps, ...]`."""
    return _deal_batches(parallel.own_share(index), parallel.own_share(mask), epoch, devices)


def _deal_batches(index: np.ndarray, mask: np.ndarray, epoch: int, devices: Sequence[Device]) -> Batch:
    """Makes the batches from this process's part of them."""
    index, mask = parallel.deal(index, devices), parallel.deal(mask, devices)
    epochs = np.full(index.shape[:2], epoch, np.int32)
    return Batch(index=index, epoch=epochs, mask=mask, labelled=np.ones_like(mask))
