"""A trained network out of the store: rebuilt from its own manifest, weights from one of its checkpoints."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax import models
from kdjax.config import with_defaults
from kdjax.errors import UserError
from kdjax.store import Run


class Network(NamedTuple):
    """A frozen network.

    Attributes:
      model: its module, or one with picked features.
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      manifest: of its run.
      step: that the weights are from.
    """

    model: Any
    variables: dict
    manifest: dict
    step: int


def load_network(run: Run, checkpoint: str = "last") -> Network:
    """Loads the network of a run.

    Args:
      run: one that exists.
      checkpoint: 'last', 'best' or a step.

    Raises:
      UserError: the run keeps no such checkpoint, or its model can no longer be built.
    """
    manifest = {**run.manifest, "config": with_defaults(run.manifest["config"])}
    if not run.steps():
        raise UserError(f"run '{run.name}' has no checkpoint yet; run its command again to go on.")
    written = (run.path / "checkpoints").stat().st_mtime_ns  # tells one state of the folder from the next
    variables, step = _variables(run.name, run.path, _which(checkpoint), written)
    return Network(build(manifest["config"]["model"], manifest["model"]["num_classes"]), variables, manifest, step)


def build(model: Mapping[str, Any], num_classes: int) -> Any:
    """Builds the network that a `config.model` describes, plain, with the features that it picks."""
    module = models.create_model(model["name"], num_classes, dtype=model["dtype"], **model["args"])
    features, pooled = tuple(model.get("features", ())), model.get("pooled", "")
    if pooled and not features:
        raise UserError(f"config.model.pooled is '{pooled}' without config.model.features: name those too.")
    return models.FeatureExtractor(module, features, pooled) if features else module


@functools.lru_cache(maxsize=8)  # many students of one process share a teacher
def _variables(name: str, path: pathlib.Path, which: str | int, written: int) -> tuple[dict, int]:
    del written
    return Run(name, path).restore_variables(which)


def _which(checkpoint: str) -> str | int:
    if checkpoint in ("last", "best"):
        return checkpoint
    if checkpoint.isdigit():
        return int(checkpoint)
    raise UserError(f"a checkpoint is 'last', 'best' or a step, not '{checkpoint}'.")
