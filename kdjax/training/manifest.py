"""What a run writes down about itself."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping

import kdjax
from kdjax.data import Dataset, split_hash
from kdjax.models import count_parameters

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections")


def make_manifest(
    config: dict, dataset: Dataset, teachers: Mapping[str, dict], batch_norm: str, parameters: int
) -> dict:
    """Returns the manifest of a run: what was asked, on what data, with what software.

    Args:
      config: resolved, plain.
      dataset: its splits are recorded by size and hash.
      teachers: name -> record of the run and step that was loaded.
      batch_norm: 'none', 'global' or 'per_device', as it came out for this network.
      parameters: of the network.
    """
    splits = {name: {"size": len(rows), "sha256": split_hash(rows)} for name, rows in dataset.splits.items()}
    return {
        "config": config,
        "model": {
            "name": config["model"]["name"],
            "args": config["model"]["args"],
            "num_classes": dataset.num_classes,
            "parameters": parameters,
            "batch_norm": batch_norm,
        },
        "loss_space": _loss_space(config["losses"]),
        "teachers": dict(teachers),
        "class_names": _names(dataset),
        "splits": splits,
        "labelled": {"size": len(dataset.labelled_train), "sha256": split_hash(dataset.labelled_train)},
        "protocols": list(dataset.protocols),
        "versions": versions(),
        "command": " ".join(sys.argv),
        "git": _git_revision(),
    }


def imported_manifest(
    config: dict, num_classes: int, variables: Mapping, dataset: Dataset | None, origin: Mapping[str, str]
) -> dict:
    """Returns the manifest of a run whose weights came from a file.

    Args:
      config: the defaults with the network and, where it is known, the data it was trained on.
      num_classes: of its logits.
      variables: of the network.
      dataset: that it was evaluated on, or None.
      origin: {'file', 'sha256'}.
    """
    splits = {} if dataset is None else dataset.splits
    return {
        "config": config,
        "model": {
            "name": config["model"]["name"],
            "args": config["model"]["args"],
            "num_classes": num_classes,
            "parameters": count_parameters(variables),
            "batch_norm": "imported",
        },
        "imported_from": dict(origin),
        "loss_space": "probs",
        "teachers": {},
        "class_names": _names(dataset),
        "splits": {name: {"size": len(rows), "sha256": split_hash(rows)} for name, rows in splits.items()},
        "versions": versions(),
        "command": " ".join(sys.argv),
        "git": _git_revision(),
    }


def _names(dataset: Dataset | None) -> list[str] | None:
    """Of the classes that a network's logits are of, where they are known."""
    return None if dataset is None or dataset.class_names is None else list(dataset.class_names)


def _loss_space(terms: Mapping) -> str:
    """In which space a teacher's outputs were fitted: 'logits' or 'probs'."""
    return "logits" if any(term.get("space") == "logits" for term in terms.values()) else "probs"


@functools.lru_cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"kdjax": kdjax.__version__, "python": platform.python_version(), **found}


@functools.lru_cache
def _git_revision() -> str | None:
    """The project's revision, None where kdjax does not live in a checkout of its own."""
    root = pathlib.Path(kdjax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
