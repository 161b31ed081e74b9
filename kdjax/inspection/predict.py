"""Outputs of a stored run, example by example, and its scores on each split of its data set."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from kdjax import models, own_code
from kdjax.config import order_seed
from kdjax.data import Dataset, Stored, eval_batches, load_dataset, resolve_view
from kdjax.data.stream import eval_stream
from kdjax.data.views import augment
from kdjax.errors import UserError, nearest
from kdjax.interop.output_files import hashes_of_files
from kdjax.store import Run, Store
from kdjax.training import parallel, processes
from kdjax.training.evaluation import evaluate, make_batches, resident, stream_if_needed
from kdjax.training.manifest import splits_of
from kdjax.training.networks import Network, load_network
from kdjax.training.shared_store import shared
from kdjax.types import Array, Batch


class Predictions(NamedTuple):
    """A network's outputs on a split, in the order of the split's rows.

    Attributes:
      logits: Logits [examples, classes].
      labels: Integer labels [examples].
      soft: Target distributions of the data set [examples, classes], or None if it has none.
      rows: Indices of the examples in the full data set [examples].
      features: The last feature map [examples, height, width, channels]; None unless requested, or if the network has
        no feature map.
      pooled: The vector that the classifier reads [examples, dim]; None unless requested, or if the network has none.
    """

    logits: np.ndarray
    labels: np.ndarray
    soft: np.ndarray | None
    rows: np.ndarray
    features: np.ndarray | None = None
    pooled: np.ndarray | None = None


class _Spec(NamedTuple):
    """Everything that determines the compiled forward pass; hashable, as the key of its cache."""

    model: nn.Module | models.FeatureExtractor
    stored: Stored
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
    """Runs a network over a split and returns its outputs.

    Args:
      network: Network to run.
      dataset: Data set that has the split.
      split: 'train', 'validation' or 'test'. Examples whose label a protocol removed are left out.
      batch_size: Size of the batch over all devices, a multiple of their number.
      devices: Devices of this process.
      view: 'none' for the images of evaluation; otherwise a view drawn from (seed, visit, example). A mix of examples
        (mixup, cutmix) is left out of it.
      seed: Seed of the view.
      visit: Number of the visit that the view is drawn for.
      features: Whether to return the last feature map and the pooled vector as well.

    Returns:
      The outputs for the labelled examples of the split.
    """
    rows = labelled_rows(dataset, split)
    options = {"view": view, "seed": seed, "visit": visit, "features": features}
    outputs = predict_rows(network, dataset, rows, batch_size, devices, **options)
    soft = None if dataset.soft is None else dataset.soft[rows]
    return Predictions(labels=dataset.labels[rows], soft=soft, rows=rows, **outputs)


def predict_rows(
    network: Network,
    dataset: Dataset,
    rows: np.ndarray,
    batch_size: int,
    devices: Sequence[jax.Device],
    *,
    view: str = "none",
    seed: int = 0,
    visit: int = 0,
    features: bool = False,
) -> dict[str, np.ndarray]:
    """Runs a network over rows of a data set, with a label or without; see `predict` for the arguments.

    Returns:
      'logits', and if requested 'features' and 'pooled' -> values [rows, ...].
    """
    spec = _Spec(network.model, dataset.stored, view, features)
    run = functools.partial(_compiled(spec, tuple(devices)), network.variables, resident(dataset, devices))
    parts = [jax.device_get(run(batch)) for batch in _batches(dataset, rows, batch_size, seed, visit, devices)]
    return {name: np.concatenate([part[name] for part in parts])[: len(rows)] for name in parts[0]}


def labelled_rows(dataset: Dataset, split: str) -> np.ndarray:
    """Returns the indices [examples] of a split's examples that have labels, in the order of the split."""
    rows = dataset.splits[split]
    return rows[dataset.labelled[rows]]


@functools.lru_cache(maxsize=32)
def _compiled(spec: _Spec, devices: tuple[jax.Device, ...]) -> Callable:
    return parallel.data_parallel(functools.partial(_outputs, spec=spec), devices)


def _outputs(
    variables: Mapping[str, Any],
    arrays: Mapping[str, Array] | None,
    batch_and_seed: tuple[Batch, Array],
    *,
    spec: _Spec,
) -> dict[str, Array]:
    """Returns the outputs for one batch, gathered from all devices."""
    batch, seed = batch_and_seed
    images, rows, *_ = augment.materialize(arrays, batch)
    images = augment.render(
        images, rows, batch.index, batch.epoch, seed, view=spec.view, stored=spec.stored, train=spec.view != "none"
    )
    output, _ = models.call(spec.model, variables, images, train=False)
    outputs = {"logits": output.logits}
    if spec.features and output.features:
        outputs["features"] = list(output.features.values())[-1]
    if spec.features and output.pooled is not None:
        outputs["pooled"] = output.pooled
    return {name: lax.all_gather(value, parallel.AXIS, tiled=True) for name, value in outputs.items()}


def _batches(
    dataset: Dataset, rows: np.ndarray, batch_size: int, seed: int, visit: int, devices: Sequence[jax.Device]
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields each batch of the rows with the view's seed, both with a leading axis of devices."""
    index, mask = eval_batches(rows, batch_size)
    stream = eval_stream(dataset, parallel.own_share(index)) if dataset.streamed else None
    seeds = np.full(len(devices), seed, np.uint32)
    for i in range(len(index)):
        batch = jax.tree.map(lambda leaf: leaf[:, 0], make_batches(index[i : i + 1], mask[i : i + 1], visit, devices))
        if stream is not None:
            images = parallel.deal(next(stream).images[None], devices)[:, 0]
            labels = parallel.split(dataset.labels[index[i : i + 1]], devices)[:, 0]
            batch = batch._replace(images=images, labels=labels)
        yield batch, seeds


class LoadedRun(NamedTuple):
    """A stored run in memory: its network and its data set.

    Attributes:
      network: The run's network at one checkpoint.
      config: The run's resolved config.
      dataset: The data set that the config names, with its protocols applied.
      devices: Devices of this process.
      batch_size: Batch size of evaluation, a multiple of the number of devices.
    """

    network: Network
    config: ConfigDict
    dataset: Dataset
    devices: tuple[jax.Device, ...]
    batch_size: int


def load_run(
    store: Store,
    name: str,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
    data: ConfigDict | None = None,
    without: Collection[str] = (),
    model: Mapping[str, Any] | None = None,
) -> LoadedRun:
    """Loads a run's network and data set.

    Args:
      store: Store that holds the run.
      name: Name of the run.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.
      data: Another config.data of the user's, to use instead of the run's own.
      without: Protocols of the run's own data that are left out.
      model: A config.model of the user's, as plain mappings, to build in place of the run's own.

    Returns:
      The loaded run.

    Raises:
      UserError: The run or the checkpoint does not exist, the run has no data set, or its data set is missing.
    """
    run = shared(store).find(name)
    network = load_network(run, checkpoint, model)
    config = ConfigDict(network.manifest["config"])
    config.data = config.data if data is None else data
    if not config.data.name:
        raise UserError(
            f"run '{name}' was imported without a data set; import it with --data to name one, such as --data=cifar100."
        )
    devices = tuple(devices or parallel.local_devices())
    dataset = _load(data, data_dir) if data is not None else load_own_data(run, config, data_dir, without)
    dataset = stream_if_needed(dataset, config.data.stream, devices)
    count = parallel.device_count(devices)
    batch_size = -(-config.eval_batch_size // count) * count
    return LoadedRun(network, config, dataset, devices, batch_size)


def load_own_data(run: Run, config: ConfigDict, data_dir: str, without: Collection[str] = ()) -> Dataset:
    """Loads the data set of a run, if it is the one that the run was trained on.

    Args:
      run: The run.
      config: Its config; the protocols that are left out are taken out of it.
      data_dir: Directory of the data sets that do not come with kdjax.
      without: Protocols that are left out.

    Raises:
      UserError: The data is code that is not trusted, it is missing, or it was replaced since.
    """
    left_out = [name for name in without if name in config.data.protocols]
    for name in left_out:
        del config.data.protocols[name]
    names = own_code.names_in_data(config.data.to_dict())
    own_code.refuse_untrusted(names, run.trust, f"run '{run.name}'")
    run.check_content({"code": own_code.source_hashes(names)})
    dataset = _load(config.data, data_dir)
    run.check_content({"data": dataset.source_hashes if left_out else dataset.hashes, "splits": splits_of(dataset)})
    return dataset


def _load(data: ConfigDict, data_dir: str) -> Dataset:
    with processes.writer_first():  # a data set may be downloaded to a folder that all of them share
        return load_dataset(data, data_dir)


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
      store: Store that holds the run.
      name: Name of the run.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.
      data: A config.data to use instead of the run's own.
      view: 'none', the name of a view, or 'own' for the view that the run was trained on.
      visit: Number of the visit; the view is drawn from it and the run's seed.
      features: Whether to return the last feature map and the pooled vector as well.

    Returns:
      The outputs for the labelled examples of the split.

    Raises:
      UserError: The run, the checkpoint, the data set or the split does not exist.
    """
    run = load_run(store, name, checkpoint, data_dir, devices, data)
    check_split(name, run, split)
    view = resolve_view(run.dataset, run.config.data.view if view == "own" else view)
    options = {"view": view, "seed": order_seed(run.config), "visit": visit, "features": features}
    return predict(run.network, run.dataset, split, run.batch_size, run.devices, **options)


def check_split(name: str, run: LoadedRun, split: str) -> None:
    """Raises a UserError if the data set of run `name` has no such split."""
    if split not in run.dataset.splits:
        raise UserError(f"run '{name}' has no split '{split}'.{nearest(split, run.dataset.splits)}")


def score_run(
    store: Store,
    name: str,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> dict:
    """Returns a run's scores on every split of its own data set.

    Args:
      store: Store that holds the run.
      name: Name of the run.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.

    Returns:
      {'run': name, 'step': step of the checkpoint, split: {'loss', 'accuracy', 'top5'}}; 'top5' is missing for five
      classes or fewer.

    Raises:
      UserError: The run, the checkpoint or its data set does not exist, or a file of outputs that taught it changed.
    """
    run = load_run(store, name, checkpoint, data_dir, devices)
    shared(store).find(name).check_content({"teachers": hashes_of_files(run.config.teachers)})
    splits = [split for split in ("train", "validation", "test") if split in run.dataset.splits]
    network = run.network
    scores = {
        split: evaluate(network.model, network.variables, run.dataset, split, run.batch_size, run.devices)
        for split in splits
    }
    return {"run": name, "step": network.step, **scores}
