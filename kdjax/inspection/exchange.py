"""Imports weights of PyTorch and flax into a store as finished runs, and exports the weights of a run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from kdjax import models, own_code
from kdjax.config import defaults
from kdjax.data import Dataset, load_dataset
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run
from kdjax.interop import file_sha256, read_weights, write_weights
from kdjax.interop.flattened import is_known_to_pool
from kdjax.interop.flax_checkpoints import open_checkpoint, read_variables
from kdjax.interop.torch_weights import Images, from_state_dict, match_state_dict, to_state_dict
from kdjax.store import Run, Store
from kdjax.store.content import variables_hash
from kdjax.training import parallel
from kdjax.training.evaluation import evaluate
from kdjax.training.manifest import imported_manifest
from kdjax.training.networks import load_network


def import_weights(
    path: str,
    model: str,
    store: Store,
    *,
    name: str = "",
    args: Mapping[str, Any] | None = None,
    data: str = "",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> tuple[str, dict]:
    """Imports the weights in a file as a finished run, which can be a teacher like any other run.

    Args:
      path: A PyTorch checkpoint, .safetensors or .npz file. It is read without torch, and no code in it is run.
      model: Name of the network, a key of MODELS or 'package.module:attribute'.
      store: Store that the run is written to.
      name: Name of the run; '' for 'imported/<model>-<stem of the file>'.
      args: Arguments of the network's constructor, besides num_classes.
      data: Name of the data set on whose training images the network was trained, all of them. The network is
        evaluated on the test images. '' if there is none.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.

    Returns:
      The run's name and its result: {'last': {'epoch', 'step', split: scores}}.

    Raises:
      UserError: The file cannot be read, its weights do not fit the network, or the run exists with other weights.
    """
    config = _config(model, args or {}, data)
    dataset = load_dataset(config.data, data_dir) if data else None
    images = None if dataset is None else Images((1, *dataset.input_shape), dataset.num_classes)
    module, state = match_state_dict(model, read_weights(path), images, **(args or {}))
    variables = from_state_dict(model, state, images, **(args or {}))
    if dataset is not None and dataset.num_classes != module.num_classes:
        raise UserError(f"{path} has {module.num_classes} classes and data set '{data}' has {dataset.num_classes}.")
    run = store.run(name or f"imported/{_plain(model)}-{_plain(pathlib.Path(path).stem)}")
    origin = {"file": pathlib.Path(path).name, "sha256": file_sha256(path)}
    return _import(run, config, module, module.num_classes, variables, dataset, origin, devices)


def import_flax(
    path: str,
    model: str,
    store: Store,
    data: str,
    *,
    name: str = "",
    args: Mapping[str, Any] | None = None,
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> tuple[str, dict]:
    """Imports parameters that a flax program saved as a finished run, which can be a teacher like any other run.

    Args:
      path: A folder of orbax or a msgpack file, with linen variables or nnx state; see `open_checkpoint`.
      model: Name of the network, a key of MODELS or 'package.module:attribute'.
      store: Store that the run is written to.
      data: Name of the data set on whose training images the network was trained, all of them. It says the size of the
        images and the number of classes, and the network is evaluated on its test images.
      name: Name of the run; '' for 'imported/<model>-<name of the checkpoint>'.
      args: Arguments of the network's constructor, besides num_classes.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.

    Returns:
      The run's name and its result: {'last': {'epoch', 'step', split: scores}}.

    Raises:
      UserError: The checkpoint cannot be read, its leaves do not fit the network, or the run exists with other weights.
    """
    config = _config(model, args or {}, data)
    parallel.local_devices()  # orbax needs a backend: a missing one must not be taken for a damaged checkpoint
    dataset = load_dataset(config.data, data_dir)
    module = models.create_model(model, dataset.num_classes, **(args or {}))
    variables = read_variables(open_checkpoint(path), module, (1, *dataset.input_shape), path)
    run = store.run(name or f"imported/{_plain(model)}-{_plain(pathlib.Path(path).name)}")
    origin = {"file": pathlib.Path(path).name, "sha256": variables_hash(variables)}
    return _import(run, config, module, dataset.num_classes, variables, dataset, origin, devices)


def _import(
    run: Run,
    config: ConfigDict,
    module: nn.Module,
    num_classes: int,
    variables: Mapping[str, Any],
    dataset: Dataset | None,
    origin: Mapping[str, str],
    devices: Sequence[jax.Device] | None,
) -> tuple[str, dict]:
    """Writes a run whose weights are at hand, unless it is there already, and returns its name and its result."""
    with run.lock():
        _refuse_other(run, origin)
        manifest = imported_manifest(config.to_dict(), num_classes, variables, dataset, origin)
        code = own_code.source_hashes(own_code.names_in(config.to_dict()))
        run.begin({**manifest, "hashes": {**manifest["hashes"], "code": code}})
        if run.result is None:
            _write(run, variables, _scores(module, variables, dataset, config, devices))
        result = run.result
    assert result is not None
    return run.name, result


def _config(model: str, args: Mapping[str, Any], data: str) -> ConfigDict:
    """Returns the config of an imported run: its network, and the data set that the weights were trained on."""
    config = defaults()
    config.name = "imported"
    config.model.name = model
    config.model.args = ConfigDict(dict(args))
    config.data.name = data
    config.data.validation = 0.0  # published networks are trained on all official training images
    config.select = "last"
    return config


def _plain(word: str) -> str:
    """Returns a word as it can stand in the name of a run."""
    word = word.replace(":", ".")
    return "".join(letter if letter.isalnum() or letter in "_+=-." else "_" for letter in word).lstrip(".")


def _refuse_other(run: Run, origin: Mapping[str, str]) -> None:
    manifest = run.manifest
    if manifest is not None and manifest.get("imported_from", {}).get("sha256") != origin["sha256"]:
        raise UserError(f"run '{run.name}' exists with other weights; choose another --run, or delete {run.path}.")


def _scores(
    module: nn.Module,
    variables: Mapping[str, Any],
    dataset: Dataset | None,
    config: ConfigDict,
    devices: Sequence[jax.Device] | None,
) -> dict[str, dict[str, float]]:
    """Returns the scores on the test split, or on the training split if there is no test split."""
    if dataset is None:
        return {}
    devices = tuple(devices or parallel.local_devices())
    count = parallel.device_count(devices)
    batch_size = -(-config.eval_batch_size // count) * count
    split = "test" if "test" in dataset.splits else "train"
    return {split: evaluate(module, variables, dataset, split, batch_size, devices)}


def _write(run: Run, variables: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> None:
    state = {"train": {"params": variables["params"], "batch_stats": variables["batch_stats"]}}
    run.save_final(0, state, {"epoch": 0, "step_in_epoch": 0, "best": None})
    run.write_result({"last": {"epoch": 0, "step": 0, **scores}, "seconds": 0.0})


class Exported(NamedTuple):
    """What `export_weights` wrote.

    Attributes:
      path: Path of the file.
      step: Training step of the weights.
      entries: Number of arrays in the file.
    """

    path: str
    step: int
    entries: int


def export_weights(
    store: Store,
    name: str,
    path: str,
    *,
    checkpoint: str = "last",
    dialect: str | None = None,
    data_dir: str = "data",
) -> Exported:
    """Writes a run's network to a file with PyTorch's parameter names and array layouts.

    Args:
      store: Store that holds the run.
      name: Name of the run.
      path: Path of the file, which ends in '.safetensors', '.npz' or '.pth'.
      checkpoint: 'last', 'best' or a step.
      dialect: Code base whose parameter names are used, such as 'torchvision'; None for the first that the network has.
      data_dir: Directory of the data sets that do not come with kdjax. The data is read only for a run of an older
        kdjax, whose manifest does not say how large the images are that its network flattens.

    Returns:
      What was written.

    Raises:
      UserError: The run, the checkpoint or the dialect does not exist, the data set is needed and missing, or the file
        cannot be written.
    """
    network = load_network(store.find(name), checkpoint)
    module = network.model.module if isinstance(network.model, models.FeatureExtractor) else network.model
    known = is_known_to_pool(module) or not network.manifest["config"]["data"]["name"]
    shape = None if known else (1, *_input_shape(network.manifest, store, name, checkpoint, data_dir))
    state = to_state_dict(module, network.variables, dialect, shape)
    about = {"kdjax_run": name, "step": str(network.step), "model": network.manifest["model"]["name"]}
    write_weights(path, state, metadata=about)
    return Exported(path, network.step, len(state))


def _input_shape(
    manifest: Mapping[str, Any], store: Store, name: str, checkpoint: str, data_dir: str
) -> tuple[int, ...]:
    """Returns the shape of an input of a run's network: as its manifest says, or else as its data set has it."""
    kept = manifest["model"].get("input_shape")
    if isinstance(kept, list) and kept and all(isinstance(side, int) and side > 0 for side in kept):
        return tuple(kept)
    return tuple(load_run(store, name, checkpoint, data_dir).dataset.input_shape)
