"""What a run of the store says about data: scores of its splits, and its outputs example by example."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from kdjax import models
from kdjax.data import Dataset, eval_batches, load_dataset, resolve_view
from kdjax.data.stream import eval_stream
from kdjax.data.views import augment
from kdjax.errors import UserError, nearest
from kdjax.store import Store
from kdjax.training import parallel
from kdjax.training.evaluation import evaluate, make_batches, resident, stream_if_needed
from kdjax.training.networks import Network, load_network
from kdjax.types import Batch


class Predictions(NamedTuple):
    """A network's outputs on a split, in the order of its rows.

    Attributes:
      logits: [examples, classes].
      labels: [examples] int32.
      soft: [examples, classes] distributions of the data, None where it has none.
      rows: [examples] int32, indices in the full set.
      features: [examples, height, width, channels], the last map, None unless asked for or where there is none.
      pooled: [examples, dim], what the classifier reads, None likewise.
    """

    logits: np.ndarray
    labels: np.ndarray
    soft: np.ndarray | None
    rows: np.ndarray
    features: np.ndarray | None = None
    pooled: np.ndarray | None = None


class _Spec(NamedTuple):
    """What shapes the compiled pass."""

    model: Any
    stored: Any
    view: str
    features: bool


def predict(
    network: Network,
    dataset: Dataset,
    split: str,
    batch_size: int,
    devices: Sequence[jax.Device],
    *,
    view: str = "none",
    seed: int = 0,
    visit: int = 0,
    features: bool = False,
) -> Predictions:
    """Runs a network over a split.

    Args:
      network: of a run.
      dataset: with the split.
      split: 'train', 'validation' or 'test'; examples whose label a protocol took away are left out.
      batch_size: over all devices, a multiple of their number.
      devices: of this process.
      view: 'none' for images as evaluation sees them, else a view drawn from (seed, visit, example), without a mix.
      seed: of the view.
      visit: of the view.
      features: whether to return the last map and the pooled vector too.
    """
    rows = dataset.splits[split]
    rows = rows[dataset.labelled[rows]]
    spec = _Spec(network.model, dataset.stored, view, features)
    run = functools.partial(_compiled(spec, tuple(devices)), network.variables, resident(dataset, devices))
    parts = [jax.device_get(run(batch)) for batch in _batches(dataset, rows, batch_size, seed, visit, devices)]
    joined = {name: np.concatenate([part[name] for part in parts])[: len(rows)] for name in parts[0]}
    soft = None if dataset.soft is None else dataset.soft[rows]
    return Predictions(labels=dataset.labels[rows], soft=soft, rows=rows, **joined)


@functools.lru_cache(maxsize=32)
def _compiled(spec: _Spec, devices: tuple):
    return parallel.data_parallel(functools.partial(_outputs, spec=spec), devices)


def _outputs(variables, arrays, batch_and_seed, *, spec: _Spec) -> dict:
    """One batch's outputs, gathered from all devices."""
    batch, seed = batch_and_seed
    images, rows, *_ = augment.materialize(arrays, batch)
    images = augment.render(
        images, rows, batch.index, batch.epoch, seed, view=spec.view, stored=spec.stored, train=spec.view != "none"
    )
    output, _ = models.call(spec.model, variables, images, train=False)
    found = {"logits": output.logits}
    if spec.features and output.features:
        found["features"] = list(output.features.values())[-1]
    if spec.features and output.pooled is not None:
        found["pooled"] = output.pooled
    return {name: lax.all_gather(value, parallel.AXIS, tiled=True) for name, value in found.items()}


def _batches(dataset, rows, batch_size, seed: int, visit: int, devices) -> Iterator[tuple[Batch, np.ndarray]]:
    index, mask = eval_batches(rows, batch_size)
    stream = eval_stream(dataset, index) if dataset.streamed else None
    seeds = np.full(len(devices), seed, np.uint32)
    for i in range(len(index)):
        batch = jax.tree.map(lambda leaf: leaf[:, 0], make_batches(index[i : i + 1], mask[i : i + 1], visit, devices))
        if stream is not None:
            images = parallel.split(next(stream).images[None], devices)[:, 0]
            labels = parallel.split(dataset.labels[index[i : i + 1]], devices)[:, 0]
            batch = batch._replace(images=images, labels=labels)
        yield batch, seeds


class Loaded(NamedTuple):
    """A run of the store with its own data.

    Attributes:
      network: its network.
      config: its resolved config.
      dataset: that its config names, with its protocols.
      devices: of this process.
      batch_size: of evaluation, a multiple of the devices.
    """

    network: Network
    config: ConfigDict
    dataset: Dataset
    devices: tuple
    batch_size: int


def load_run(
    store: Store,
    name: str,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
    data: ConfigDict | None = None,
) -> Loaded:
    """Loads a run's network and data.

    Args:
      store: that has the run.
      name: of the run.
      checkpoint: 'last', 'best' or a step.
      data_dir: where data sets that are not embedded lie.
      devices: of this process; all of them by default.
      data: a config.data in the place of the run's own.

    Raises:
      UserError: no such run or checkpoint, or its data is not there.
    """
    network = load_network(store.find(name), checkpoint)
    config = ConfigDict(network.manifest["config"])
    config.data = config.data if data is None else data
    if not config.data.name:
        raise UserError(f"run '{name}' was imported without a data set; import it with --data, as --data=cifar100.")
    devices = tuple(devices or jax.local_devices())
    dataset = stream_if_needed(load_dataset(config.data, data_dir), config.data.stream, devices)
    batch_size = -(-config.eval_batch_size // len(devices)) * len(devices)
    return Loaded(network, config, dataset, devices, batch_size)


def predict_run(
    store: Store,
    name: str,
    split: str = "test",
    *,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
    data: ConfigDict | None = None,
    view: str = "none",
    visit: int = 0,
    features: bool = False,
) -> Predictions:
    """Returns a run's outputs on a split of its own data set.

    Args:
      store, name, checkpoint, data_dir, devices, data: as `load_run` takes them.
      split: 'train', 'validation' or 'test'.
      view: 'none', a view's name, or 'own' for the one that the run was trained on.
      visit: of the view, which with the run's seed keys it.
      features: whether to return the last map and the pooled vector too.

    Raises:
      UserError: as `load_run`, or the data has no such split.
    """
    run = load_run(store, name, checkpoint, data_dir, devices, data)
    if split not in run.dataset.splits:
        raise UserError(f"run '{name}' has no split '{split}'.{nearest(split, run.dataset.splits)}")
    shown = resolve_view(run.dataset, run.config.data.view if view == "own" else view)
    options = {"view": shown, "seed": run.config.seed, "visit": visit, "features": features}
    return predict(run.network, run.dataset, split, run.batch_size, run.devices, **options)


def score_run(
    store: Store,
    name: str,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> dict:
    """Returns {'run', 'step', split: {'loss', 'accuracy', 'top5'}} of a run on the splits of its own data set.

    Args:
      store, name, checkpoint, data_dir, devices: as `load_run` takes them.

    Raises:
      UserError: no such run or checkpoint, or its data is not there.
    """
    run = load_run(store, name, checkpoint, data_dir, devices)
    splits = [split for split in ("train", "validation", "test") if split in run.dataset.splits]
    network = run.network
    scores = {
        split: evaluate(network.model, network.variables, run.dataset, split, run.batch_size, run.devices)
        for split in splits
    }
    return {"run": name, "step": network.step, **scores}
