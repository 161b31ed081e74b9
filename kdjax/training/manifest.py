"""The manifest of a run: what was asked for, on what data, with what software."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

import kdjax
from kdjax import own_code, randomness
from kdjax.data import Dataset, split_hash
from kdjax.models import count_parameters

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections")


def make_manifest(
    config: dict[str, Any],
    model_args: Mapping[str, Any],
    dataset: Dataset,
    teachers: Mapping[str, dict],
    batch_norm: str,
    parameters: int,
    hashes: Mapping[str, Any],
    devices: int,
) -> dict[str, Any]:
    """Returns the manifest of a run that is trained.

    Args:
      config: Resolved config, as plain mappings.
      model_args: Arguments that its network was built with; a teacher may have completed those of the config.
      dataset: Data; its splits are recorded by size and hash.
      teachers: Name -> record of the run and step that was loaded.
      batch_norm: Over what batch statistics are taken for this network: 'none', 'global' or 'per_device'.
      parameters: Number of the network's parameters.
      hashes: What the run is made of; see `Run.check_content`.
      devices: Number of devices, of all processes, on which it is begun.
    """
    of_main = own_code.names_of_main(config)
    return {
        "config": config,
        **({"cannot_be_rebuilt": of_main} if of_main else {}),
        "model": {
            "name": config["model"]["name"],
            "args": dict(model_args),
            "num_classes": dataset.num_classes,
            "input_shape": list(dataset.input_shape),
            "parameters": parameters,
            "batch_norm": batch_norm,
        },
        "loss_space": _loss_space(config["losses"]),
        "teachers": dict(teachers),
        "class_names": _names(dataset),
        "splits": splits_of(dataset),
        "labelled": _rows(dataset.labelled_train),
        "protocols": list(dataset.protocols),
        "hashes": dict(hashes),
        "devices": devices,
        "randomness": randomness.VERSION,
        "versions": versions(),
        "command": " ".join(sys.argv),
        "git": _git_revision(),
    }


def regrouped(manifest: Mapping[str, Any], population: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
    """Returns the manifest of a run that goes on alone or with other members than before.

    Args:
      manifest: The run's manifest.
      population: {'layout', 'members'} of the population that it goes on in; None if it goes on alone.
      step: Updates that were made before.
    """
    before = {"until_step": step, "population": manifest.get("population")}
    earlier = [*manifest.get("earlier_populations", []), *([before] if step else [])]
    kept = {name: value for name, value in manifest.items() if name not in ("population", "earlier_populations")}
    return (
        kept
        | ({"population": population} if population else {})
        | ({"earlier_populations": earlier} if earlier else {})
    )


def imported_manifest(
    config: dict[str, Any],
    num_classes: int,
    variables: Mapping[str, Any],
    dataset: Dataset | None,
    origin: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the manifest of a run whose weights came from a file.

    Args:
      config: The defaults with the network and, where it is known, the data that it was trained on.
      num_classes: Width of its logits.
      variables: The network's variables.
      dataset: Data that it was evaluated on, or None.
      origin: {'file', 'sha256'} of the file.
    """
    return {
        "config": config,
        "model": {
            "name": config["model"]["name"],
            "args": config["model"]["args"],
            "num_classes": num_classes,
            **({} if dataset is None else {"input_shape": list(dataset.input_shape)}),
            "parameters": count_parameters(variables),
            "batch_norm": "imported",
        },
        "imported_from": dict(origin),
        "loss_space": "probs",
        "teachers": {},
        "class_names": _names(dataset),
        "splits": {} if dataset is None else splits_of(dataset),
        "hashes": {"data": {} if dataset is None else dataset.hashes},
        "versions": versions(),
        "command": " ".join(sys.argv),
        "git": _git_revision(),
    }


def splits_of(dataset: Dataset) -> dict[str, dict]:
    """Returns split -> {'size', 'sha256'} of its rows, as manifests keep them."""
    return {name: _rows(rows) for name, rows in dataset.splits.items()}


def _rows(rows: np.ndarray) -> dict[str, Any]:
    return {"size": len(rows), "sha256": split_hash(rows)}


def _names(dataset: Dataset | None) -> list[str] | None:
    """Returns the names of the classes of a network's logits, where they are known."""
    return None if dataset is None or dataset.class_names is None else list(dataset.class_names)


def _loss_space(terms: Mapping[str, Mapping]) -> str:
    """Returns the space in which the network's outputs are fitted, 'logits' or 'probs'."""
    return "logits" if any(term.get("space") == "logits" for term in terms.values()) else "probs"


@functools.lru_cache
def versions() -> dict[str, str]:
    """Returns the versions of the packages that the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"kdjax": kdjax.__version__, "python": platform.python_version(), **found}


@functools.lru_cache
def _git_revision() -> str | None:
    """Returns the project's revision, None where kdjax is not in a checkout of its own."""
    root = pathlib.Path(kdjax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
