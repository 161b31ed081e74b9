"""Measures every network: initialization, compilation of its train step, and a step at batch 64 of 32x32 images."""

import functools
import statistics
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench.results import Table, publish
from kdjax.bench.step import compiled_step
from kdjax.bench.timing import in_turn, machine
from kdjax.data import Dataset
from kdjax.data.dataset import Stored
from kdjax.errors import lookup
from kdjax.training.plan import plan_with, resolve

SIZE, CLASSES, BATCH = 32, 100, 64
HEADER = (
    "network",
    "parameters",
    "running statistics",
    "seconds to initialize",
    "seconds to compile",
    "milliseconds per step",
    "images per second",
)


def show(flag: flags.FlagValues) -> None:
    """Prints a row for every network that the command's flags name, as soon as it is measured."""
    names = flag.only or [name for name in models.MODELS if name not in models.WRAPPERS]
    for name in names:
        lookup(models.MODELS, name, "model")
    note = f"{machine()}; one device, batch {BATCH}, {SIZE}x{SIZE}, {CLASSES} classes, cross-entropy, SGD"
    rows = []
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache would not be compiled
    for name in names:
        rows.append(row(flag.config, name, flag.rounds, flag.steps))
        print(" | ".join(map(str, rows[-1])), flush=True)
        jax.clear_caches()
    print()
    publish(flag, note, Table(HEADER, rows))


def row(config: ConfigDict, name: str, rounds: int, num_steps: int) -> tuple:
    """Returns a network's row of the table.

    Args:
      config: Config of a teacher. Its network, data and batch size are replaced.
      name: Name of the network.
      rounds: Number of measurements, of which the median is reported.
      num_steps: Number of train steps in one measurement.
    """
    config = _config_of(config, name)
    module = models.create_model(name, CLASSES)
    began = time.perf_counter()
    variables = models.init_variables(module, (1, SIZE, SIZE, 3), config.seed)
    init_seconds = time.perf_counter() - began
    step = compiled_step(plan_with(config, _noise(), {}, jax.local_devices()[:1]), BATCH)
    median = statistics.median(in_turn({name: step.run}, rounds, num_steps)[name])
    scalars = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    return (
        name,
        f"{models.count_parameters(variables):,}",
        f"{scalars:,}",
        f"{init_seconds:.2f}",
        f"{step.compile_seconds:.1f}",
        f"{1000 * median:.1f}",
        f"{BATCH / median:.0f}",
    )


def _config_of(config: ConfigDict, name: str) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.model = ConfigDict({**config.model.to_dict(), "name": name, "args": {}})
    config.losses = ConfigDict({"cross_entropy": {"weight": 1.0}})
    config.teachers = ConfigDict()
    config.batch_size = BATCH
    return resolve(config)


@functools.lru_cache
def _noise() -> Dataset:
    """Random images, since the time of a step does not depend on their content."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    stored = Stored(1 / 255, (0.5,), (0.25,), ("crop_flip", "none"))
    return Dataset("noise", images, labels, None, CLASSES, {"train": np.arange(BATCH, dtype=np.int32)}, stored)
