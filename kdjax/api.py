"""What notebooks and scripts call: `kdjax.train`, `kdjax.load`, `kdjax.list_runs` and `kdjax.load_config`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from kdjax import models
from kdjax.config import with_defaults
from kdjax.config_files import load_config
from kdjax.data import Stored
from kdjax.data.views import augment
from kdjax.errors import UserError
from kdjax.given import with_objects
from kdjax.inspection.predict import LoadedRun, load_run
from kdjax.own_code import names_in, source_hashes
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
    model: Any = None,
    losses: Any = None,
    name: str | Sequence[str] = "",
    data_dir: str = "data",
    show: bool = True,
) -> Any:
    """Trains a run, resumes one that was stopped, or returns the result of one that is finished.

    Args:
      config: A whole config, as `load_config` returns it; or several, which are trained in one step where they can
        share it.
      store: The store that has the teachers and gets the runs, or its folder.
      model: A network in place of the config's: a flax module, its class, or a function that takes num_classes and
        returns a module.
      losses: Losses in place of the config's: a function, which is then the only loss, with weight 1; or label ->
        function, name of a loss, or entry of config.losses whose 'loss' is a function. A label that the config has
        keeps its weight and its hyper-parameters. What of these objects cannot be imported again, such as a lambda or
        a class of a notebook, trains too; its run is marked, `load` then needs the network, and it cannot teach.
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
    if not alone and not (isinstance(config, Sequence) and all(isinstance(one, ConfigDict) for one in config)):
        raise UserError("kdjax.train takes a config, as kdjax.load_config(FILE) returns it, or a list of configs.")
    configs = [with_objects(one, model, losses) for one in ([config] if alone else config)]
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
      stored_dtype: Type of a stored image.
    """

    module: nn.Module | models.FeatureExtractor
    variables: Mapping[str, Any]
    stored: Stored
    stored_shape: tuple[int, ...]
    config: ConfigDict
    result: Mapping[str, Any] | None
    stored_dtype: np.dtype = np.dtype(np.uint8)

    def apply(self, images: Array) -> ModelOutput:
        """Returns the network's output for stored images, in evaluation.

        Args:
          images: Images [batch, height, width, channels] or vectors [batch, dim] as the data set stores them: bytes,
            or unscaled floats. The run's own resizing and normalisation are applied.

        Raises:
          UserError: The images have another shape, and the run does not resize; or their values are not those of bytes,
            and the data set stores bytes. Values are not looked at under jit.
        """
        if not isinstance(images, jax.Array):
            images = _as_array(images)
        self._check_shape(images.shape)
        if not isinstance(images, jax.core.Tracer):
            self._check_values(np.asarray(images))
        images = jnp.asarray(images)
        rows = jnp.arange(len(images))
        shown = augment.render(images, rows, rows, 0, 0, view="none", stored=self.stored, train=False)
        return models.call(self.module, self.variables, shown, train=False)[0]

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        wanted = self.stored_shape
        fixed = slice(-1, None) if self.stored.size else slice(None)  # of resized images only the channels
        if len(shape) == 1 + len(wanted) and shape[1:][fixed] == wanted[fixed] and shape[0]:
            return
        hint = ""
        if shape == wanted:
            hint = "; for one image give images[None]"
        elif len(shape) == 4 == 1 + len(wanted) and shape[1] == wanted[-1]:
            hint = "; give images.transpose(0, 2, 3, 1)"
        raise UserError(f"images {list(shape)} are not as the run's data set stores them: {['batch', *wanted]}{hint}.")

    def _check_values(self, images: np.ndarray) -> None:
        """Refuses images in other units than the stored ones, as far as the values show it."""
        if self.stored_dtype != np.uint8:
            if images.dtype == np.uint8 and images.ndim == 4:
                raise UserError(
                    f"images are bytes, and the run's data set stores {self.stored_dtype}: give its values."
                )
            return
        scaled = images.dtype.kind == "f" and images.max() <= 1 and bool((images != np.round(images)).any())
        if images.dtype == bool or scaled or images.min() < 0 or images.max() > 255:
            raise UserError(
                f"images have {images.dtype} values from {images.min():g} to {images.max():g}, and the run's data "
                "set stores bytes, 0 to 255, which the run itself scales and normalises: give images as stored."
            )

    def logits(self, images: Array) -> Array:
        """Returns logits [batch, classes] for stored images; see `apply`."""
        return self.apply(images).logits

    def probs(self, images: Array) -> Array:
        """Returns class probabilities [batch, classes] for stored images; see `apply`."""
        return jax.nn.softmax(self.logits(images))


def _as_array(images: Any) -> np.ndarray:
    array = np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise UserError(f"images must be an array of numbers, not {type(images).__name__}.")
    return array


def load(
    run: str,
    store: Store | os.PathLike | str = "runs",
    checkpoint: str | int = "last",
    *,
    trust: Iterable[str] = (),
    model: Any = None,
    data_dir: str = "data",
) -> LoadedModel:
    """Loads the network of a stored run.

    Args:
      run: Name of the run.
      store: Its store, or the store's folder.
      checkpoint: 'last', 'best' or a step.
      trust: Packages that are imported if the run names code in them.
      model: The network, as `train` takes it, in place of the one that the run names; needed if that one cannot be
        imported.
      data_dir: Folder of the data sets that are not embedded; the run's own says how stored images are normalised.

    Raises:
      UserError: The run, the checkpoint or the data set does not exist, the run names code that is not trusted or
        cannot be imported, or the weights are of another network than the given one.
    """
    opened = _store(store, trust)
    section = _model_section(opened, run, model) if model is not None else None
    loaded = load_run(opened, run, str(checkpoint), data_dir, model=section)
    if section is not None:
        _check_weights(run, loaded)
    network, dataset = loaded.network, loaded.dataset
    how = (dataset.stored, tuple(dataset.stored_shape))
    result = opened.find(run).result
    return LoadedModel(network.model, network.variables, *how, loaded.config, result, np.dtype(dataset.dtype))


def _model_section(store: Store, run: str, model: Any) -> dict[str, Any]:
    """Returns the config.model of a stored run with another network; warns if its code is not that of the run."""
    found = store.find(run)
    stored = with_defaults((found.manifest or {}).get("config", {}))
    given = with_objects(ConfigDict({"model": stored["model"]}), model).model.to_dict()
    names, before = names_in({"model": given}), (found.manifest or {}).get("hashes", {}).get("code", {})
    for name, digest in source_hashes(names).items():
        if before.get(stored["model"]["name"], digest) != digest:
            logging.warning(
                "run '%s' was trained with other code than that of model=%s: outputs may differ.", run, name
            )
    return given


def _check_weights(run: str, loaded: LoadedRun) -> None:
    network = loaded.network
    module = network.model.module if isinstance(network.model, models.FeatureExtractor) else network.model
    needed = _shapes(models.variable_shapes(module, (1, *loaded.dataset.input_shape)))
    stored = _shapes(network.variables)
    if differing := sorted(leaf for leaf, _ in needed.items() ^ stored.items()):
        leaf = differing[0]
        raise UserError(
            f"run '{run}' has other weights than model= takes: its {leaf} is {stored.get(leaf, 'missing')}, and "
            f"{type(module).__name__} needs {needed.get(leaf, 'none')}; give the network that it was trained with."
        )


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def list_runs(store: Store | os.PathLike | str = "runs", match: str = "*") -> RunList:
    """Returns a table of a store's runs: name, state, epoch, accuracies, losses, teachers, seconds and size on disk.

    Args:
      store: The store, or its folder.
      match: Shell pattern of the names.
    """
    return _list_runs(_store(store), match)


def _store(store: Store | os.PathLike | str, trust: Iterable[str] = ()) -> Store:
    return store if isinstance(store, Store) else Store(store, trust)
