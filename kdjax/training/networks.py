"""A trained network from the store: rebuilt from its run's manifest, with the weights of one of its checkpoints."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax import models, own_code
from kdjax.config import with_defaults
from kdjax.errors import UserError
from kdjax.store import Run
from kdjax.training import parallel, processes
from kdjax.training.spec import Model


class Network(NamedTuple):
    """A frozen network.

    Attributes:
      model: Its module, or one with picked features.
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      manifest: Manifest of its run, completed by the defaults of fields that have come since.
      step: Step of the checkpoint that the weights are from.
    """

    model: Model
    variables: dict[str, Any]
    manifest: dict[str, Any]
    step: int


def load_network(run: Run, checkpoint: str = "last", model: Mapping[str, Any] | None = None) -> Network:
    """Loads the network of a run.

    Args:
      run: A run that exists.
      checkpoint: 'last', 'best' or a step.
      model: A config.model of the user's, as plain mappings, to build in place of the run's own.

    Raises:
      UserError: The run keeps no such checkpoint, its model is code that is not trusted, cannot be imported or has
        changed since, or the model can no longer be built.
    """
    parallel.local_devices()  # orbax needs a backend: a missing one must not be taken for a damaged checkpoint
    stored = run.manifest
    if stored is None or not run.steps():
        raise UserError(f"run '{run.name}' has no checkpoint yet; repeat its command to resume it.")
    if "config" not in stored or "num_classes" not in stored.get("model", {}):
        raise UserError(f"{run.path} is damaged: its manifest lacks 'config' or 'model'; delete it and train it again.")
    manifest = {**stored, "config": with_defaults(stored["config"])}
    if model is None:
        section = manifest["config"]["model"]
        model = {**section, "args": stored["model"].get("args", section["args"])}
        _check_code(run, model)
    which = _parse(checkpoint)
    variables, step = processes.by_writer(lambda: _read(run.name, run.path, which))
    return Network(build(model, manifest["model"]["num_classes"]), variables, manifest, step)


def _check_code(run: Run, model: Mapping[str, Any]) -> None:
    """Refuses a stored network whose code is not trusted, cannot be imported or has changed since."""
    names = own_code.names_in({"model": model})
    if own_code.names_of_main({"model": model}):
        raise UserError(
            f"run '{run.name}' has a network that cannot be imported again, '{model['name']}', so that only "
            "kdjax.load(..., model=...) can rebuild it; to use it as a teacher or in a command, train it from a "
            "module that can be imported."
        )
    own_code.refuse_untrusted(names, run.trust, f"run '{run.name}'")
    run.check_content({"code": own_code.source_hashes(names)})


def build(model: Mapping[str, Any], num_classes: int) -> Model:
    """Builds the network that a `config.model` describes: plain, or with the features that it picks.

    Raises:
      UserError: The config picks a pooled vector without features, or names an unknown network or argument.
    """
    module = models.create_model(model["name"], num_classes, dtype=model["dtype"], **model["args"])
    features, pooled = tuple(model.get("features", ())), model.get("pooled", "")
    if pooled and not features:
        raise UserError(f"config.model.pooled is '{pooled}' without config.model.features: name those too.")
    return models.FeatureExtractor(module, features, pooled) if features else module


def _read(name: str, path: pathlib.Path, which: str | int) -> tuple[dict[str, Any], int]:
    # The time of writing tells one state of the folder from the next, so that the cache never returns an older one.
    return _variables(name, path, which, (path / "checkpoints").stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)  # many students of one process share a teacher
def _variables(name: str, path: pathlib.Path, which: str | int, written: int) -> tuple[dict[str, Any], int]:
    del written
    return Run(name, path).restore_variables(which)


def _parse(checkpoint: str) -> str | int:
    if checkpoint in ("last", "best"):
        return checkpoint
    if checkpoint.isdigit():
        return int(checkpoint)
    raise UserError(f"a checkpoint is 'last', 'best' or a step, not '{checkpoint}'.")
