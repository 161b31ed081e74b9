"""A teacher and its student that train in a second, for tests of what happens to their files."""

import json
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.store import Store
from kdjax.training.loop import train


def write_data(path: pathlib.Path, seed: int = 0, rows: int = 40) -> None:
    """Writes an .npz file of small images of two classes."""
    draw = np.random.default_rng(seed)
    np.savez(path, images=draw.integers(0, 256, (rows, 2, 2, 1)).astype(np.uint8), labels=np.arange(rows) % 2)


def teacher_config(data: pathlib.Path, **changed) -> ConfigDict:
    """Returns the config of a small MLP on an .npz file."""
    config = defaults()
    config.name, config.epochs, config.batch_size, config.eval_batch_size = "tiny", 2, 8, 8
    config.data.name, config.data.args, config.data.validation = "arrays", {"path": str(data)}, 0.25
    config.model.args, config.losses = {"hidden": (3,)}, {"cross_entropy": {"weight": 1.0}}
    config.checkpoint.every_epochs = 1
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    return config


def student_config(data: pathlib.Path, teacher: str = "teacher", **changed) -> ConfigDict:
    """Returns the config of its student."""
    config = teacher_config(data, **changed)
    config.teachers = {"a": {"run": teacher}}
    config.losses = {"kd": {"weight": 1.0}}
    return config


def run(config: ConfigDict, store: Store, name: str, *, show: bool = False) -> dict:
    """Trains a run on one device."""
    return train(config, store, name=name, devices=jax.local_devices()[:1], show=show)


def edit(path: pathlib.Path, change) -> None:
    """Changes the mapping in a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
