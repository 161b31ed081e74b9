"""Networks in from PyTorch's weight files, as ordinary runs of the store, and out again."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import models
from kdjax.config import defaults
from kdjax.data import Dataset, load_dataset
from kdjax.errors import UserError
from kdjax.interop import file_sha256, read_weights, write_weights
from kdjax.interop.torch_weights import from_state_dict, match_state_dict, to_state_dict
from kdjax.store import Run, Store
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
    """Writes the weights of a file into the store as a finished run, a teacher like any other.

    Args:
      path: a PyTorch checkpoint, .safetensors or .npz; read without torch, and nothing in it is run.
      model: a row of MODELS.
      store: where the run goes.
      name: of the run; '' for 'imported/<model>-<stem of the file>'.
      args: what the network's constructor takes besides num_classes.
      data: a data set whose training images it was trained on, all of them; it is evaluated on the test images. '' for
        none.
      data_dir: where data sets that are not embedded lie.
      devices: of this process; all of them by default.

    Returns:
      The run's name and its result: {'last': {'epoch', 'step', split: scores}}.

    Raises:
      UserError: the file or the weights do not fit, or the run exists with other weights.
    """
    config = _config(model, args or {}, data)
    dataset = load_dataset(config.data, data_dir) if data else None
    module, state = match_state_dict(model, read_weights(path), **(args or {}))
    variables = from_state_dict(model, state, **(args or {}))
    if dataset is not None and dataset.num_classes != module.num_classes:
        raise UserError(f"{path} has {module.num_classes} classes and data set '{data}' has {dataset.num_classes}.")
    run = store.run(name or f"imported/{model}-{_stem(path)}")
    origin = {"file": pathlib.Path(path).name, "sha256": file_sha256(path)}
    with run.lock():
        _refuse_other(run, origin)
        run.begin(imported_manifest(config.to_dict(), module.num_classes, variables, dataset, origin))
        if run.result is None:
            _write(run, variables, _scores(module, variables, dataset, config, devices))
    return run.name, run.result


def _config(model: str, args: Mapping[str, Any], data: str) -> ConfigDict:
    """The config of a run that no training made: a network, and the data that its makers are known to have used."""
    config = defaults()
    config.name = "imported"
    config.model.name = model
    config.model.args = ConfigDict(dict(args))
    config.data.name = data
    config.data.validation = 0.0  # such networks were trained on all official training images
    config.select = "last"
    return config


def _stem(path: str) -> str:
    stem = pathlib.Path(path).stem
    return "".join(letter if letter.isalnum() or letter in "_+=-." else "_" for letter in stem).lstrip(".")


def _refuse_other(run: Run, origin: Mapping[str, str]) -> None:
    manifest = run.manifest
    if manifest is not None and manifest.get("imported_from", {}).get("sha256") != origin["sha256"]:
        raise UserError(f"run '{run.name}' exists with other weights; choose another --run, or delete {run.path}.")


def _scores(module, variables, dataset: Dataset | None, config: ConfigDict, devices) -> dict:
    if dataset is None:
        return {}
    devices = tuple(devices or jax.local_devices())
    batch_size = -(-config.eval_batch_size // len(devices)) * len(devices)
    split = "test" if "test" in dataset.splits else "train"
    return {split: evaluate(module, variables, dataset, split, batch_size, devices)}


def _write(run: Run, variables: dict, scores: dict) -> None:
    state = {"train": {"params": variables["params"], "batch_stats": variables["batch_stats"]}}
    try:
        run.save(0, state, {"epoch": 0, "step_in_epoch": 0, "best": None})
        run.wait()
        run.write_result({"last": {"epoch": 0, "step": 0, **scores}, "seconds": 0.0})
    finally:
        run.close()


def export_weights(
    store: Store, name: str, path: str, *, checkpoint: str = "last", dialect: str | None = None
) -> dict[str, Any]:
    """Writes a run's network out under PyTorch's names and in its layouts.

    Args:
      store: that has the run.
      name: of the run.
      path: ends in '.safetensors' or '.npz'.
      checkpoint: 'last', 'best' or a step.
      dialect: whose names; None takes the network's first.

    Returns:
      {'path', 'step', 'entries'}.

    Raises:
      UserError: no such run, checkpoint or dialect, or a file that cannot be written.
    """
    network = load_network(store.find(name), checkpoint)
    module = network.model.module if isinstance(network.model, models.Picked) else network.model
    state = to_state_dict(module, network.variables, dialect)
    about = {"kdjax_run": name, "step": str(network.step), "model": network.manifest["model"]["name"]}
    write_weights(path, state, metadata=about)
    return {"path": path, "step": network.step, "entries": len(state)}
