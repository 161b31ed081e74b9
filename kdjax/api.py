"""What notebooks and scripts call: `kdjax.train`, `kdjax.load`, `kdjax.list_runs` and `kdjax.load_config`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import models
from kdjax.config_files import load_config
from kdjax.data import Stored
from kdjax.data.views import augment
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run
from kdjax.reporting.listing import RunList
from kdjax.reporting.listing import list_runs as _list_runs
from kdjax.store import Store
from kdjax.training.loop import train_together
from kdjax.types import Array, ModelOutput

__all__ = ["LoadedModel", "list_runs", "load", "load_config", "train"]


def train(
    config: ConfigDict | Sequence[ConfigDict],
    store: Store | os.PathLike | str = "runs",
    *,
    name: str | Sequence[str] = "",
    data_dir: str = "data",
    show: bool = True,
) -> Any:
    """Trains a run, resumes one that was stopped, or returns the result of one that is finished.

    Args:
      config: A whole config, as `load_config` returns it; or several, which are trained in one step where they can
        share it.
      store: The store that has the teachers and gets the runs, or its folder.
      name: Name of the run, '' for the default of its config; of several configs a name each.
      data_dir: Folder of the data sets that are not embedded.
      show: Whether to show progress.

    Returns:
      The contents of `result.json`, such as result['last']['test']['accuracy']; of several configs a list of them.

    Raises:
      UserError: There is a mistake in a config, the data, the teachers or the store.
      RunError: The loss was not finite; the last good checkpoint is kept.
      Interrupted: SIGINT or SIGTERM came; the runs were saved.
    """
    alone = isinstance(config, ConfigDict)
    configs = [config] if alone else list(config)
    names = ([name] if isinstance(name, str) else list(name)) if name else []
    if names and len(names) != len(configs):
        raise UserError(f"there are {len(names)} names for {len(configs)} configs; give one for each, or none.")
    results = train_together(configs, _store(store), names=names, data_dir=data_dir, show=show)
    return results[0] if alone else results


class LoadedModel(NamedTuple):
    """A trained network that takes images as they are stored. It works under jit, grad and vmap.

    Attributes:
      module: The flax module, which takes normalised images.
      variables: {'params': ..., 'batch_stats': ...}.
      stored: How stored images become the input of the module: their resizing and normalisation.
      stored_shape: Shape of a stored image: (height, width, channels) or (dim,).
      config: The run's resolved config.
      result: The contents of the run's `result.json`; None until it is finished.
    """

    module: nn.Module | models.FeatureExtractor
    variables: Mapping[str, Any]
    stored: Stored
    stored_shape: tuple[int, ...]
    config: ConfigDict
    result: Mapping[str, Any] | None

    def apply(self, images: Array) -> ModelOutput:
        """Returns the network's output for stored images, in evaluation.

        Args:
          images: Images [batch, height, width, channels] or vectors [batch, dim] as the data set stores them: bytes,
            or unscaled floats. The run's own resizing and normalisation are applied.

        Raises:
          UserError: The images have another shape, and the run does not resize.
        """
        images = jnp.asarray(images)
        fixed = slice(-1, None) if self.stored.size else slice(None)  # of resized images only the channels
        if images.ndim != 1 + len(self.stored_shape) or images.shape[1:][fixed] != self.stored_shape[fixed]:
            wanted = ["batch", *self.stored_shape]
            raise UserError(f"images {list(images.shape)} are not as the run's data set stores them: {wanted}.")
        rows = jnp.arange(len(images))
        shown = augment.render(images, rows, rows, 0, 0, view="none", stored=self.stored, train=False)
        return models.call(self.module, self.variables, shown, train=False)[0]

    def logits(self, images: Array) -> Array:
        """Returns logits [batch, classes] for stored images; see `apply`."""
        return self.apply(images).logits

    def probs(self, images: Array) -> Array:
        """Returns class probabilities [batch, classes] for stored images; see `apply`."""
        return jax.nn.softmax(self.logits(images))


def load(
    run: str,
    store: Store | os.PathLike | str = "runs",
    checkpoint: str = "last",
    *,
    trust: Iterable[str] = (),
    data_dir: str = "data",
) -> LoadedModel:
    """Loads the network of a stored run.

    Args:
      run: Name of the run.
      store: Its store, or the store's folder.
      checkpoint: 'last', 'best' or a step.
      trust: Packages that are imported if the run names code in them.
      data_dir: Folder of the data sets that are not embedded; the run's own says how stored images are normalised.

    Raises:
      UserError: The run, the checkpoint or the data set does not exist, or the run names code that is not trusted.
    """
    opened = _store(store, trust)
    loaded = load_run(opened, run, checkpoint, data_dir)
    network, dataset = loaded.network, loaded.dataset
    how = (dataset.stored, tuple(dataset.stored_shape))
    return LoadedModel(network.model, network.variables, *how, loaded.config, opened.find(run).result)


def list_runs(store: Store | os.PathLike | str = "runs", match: str = "*") -> RunList:
    """Returns a table of a store's runs: name, state, epoch, accuracies, losses, teachers, seconds and size on disk.

    Args:
      store: The store, or its folder.
      match: Shell pattern of the names.
    """
    return _list_runs(_store(store), match)


def _store(store: Store | os.PathLike | str, trust: Iterable[str] = ()) -> Store:
    return store if isinstance(store, Store) else Store(store, trust)
