"""Times every network: initial weights, compilation of its train step, and a step at batch 64 of 32x32 images."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench.step import machine, one_step
from kdjax.data import Dataset
from kdjax.data.dataset import Stored
from kdjax.errors import lookup
from kdjax.reporting.tables import markdown
from kdjax.training.plan import plan_with, resolve

SIZE, CLASSES, BATCH = 32, 100, 64
HEADER = ("network", "parameters", "running statistics", "init s", "compile s", "ms a step", "images/s")


def show(flag: Any) -> None:
    """Prints a row for every network that the command's flags name, as soon as it is measured."""
    names = flag.only or list(models.MODELS)
    for name in names:
        lookup(models.MODELS, name, "model")
    print(f"{machine()}; one device, batch {BATCH}, {SIZE}x{SIZE}, {CLASSES} classes, cross-entropy, SGD\n")
    rows = []
    jax.config.update("jax_enable_compilation_cache", False)  # what is found there was not compiled
    for name in names:
        rows.append(row(flag.config, name, flag.rounds, flag.steps))
        print(" | ".join(map(str, rows[-1])), flush=True)
        jax.clear_caches()
    print(f"\n{markdown(HEADER, rows)}")


def row(config: ConfigDict, name: str, rounds: int, num_steps: int) -> tuple:
    """Returns a network's row of the table.

    Args:
      config: of a teacher; its network, data and batch size are replaced.
      name: of the network.
      rounds: of measurements; the median is reported.
      num_steps: train steps a round.
    """
    config = ConfigDict(config.to_dict())
    config.model = ConfigDict({**config.model.to_dict(), "name": name, "args": {}})
    config.losses = ConfigDict({"cross_entropy": {"weight": 1.0}})
    config.teachers = ConfigDict()
    config.batch_size = BATCH
    config = resolve(config)
    module = models.create_model(name, CLASSES)
    began = time.perf_counter()
    variables = models.init_variables(module, (1, SIZE, SIZE, 3), config.seed)
    init_seconds = time.perf_counter() - began
    step, compile_seconds = _compile(config)
    step()
    seconds = [_time(step, num_steps) for _ in range(rounds)]
    parameters, median = models.count_parameters(variables), statistics.median(seconds)
    scalars = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    timings = (f"{init_seconds:.2f}", f"{compile_seconds:.1f}", f"{1000 * median:.1f}", f"{BATCH / median:.0f}")
    return name, f"{parameters:,}", f"{scalars:,}", *timings


def _compile(config: ConfigDict) -> tuple[Callable[[], None], float]:
    """Returns a function that makes one update and waits for it, and the seconds that compiling it took."""
    plan = plan_with(config, _generated(), {}, jax.local_devices()[:1])
    lowered, (carry, fixed, batches) = one_step(plan, BATCH)
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    carried = [carry]

    def step() -> None:
        carried[0] = jax.block_until_ready(compiled(carried[0], fixed, batches))

    return step, compile_seconds


def _time(step: Callable[[], None], num_steps: int) -> float:
    began = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - began) / num_steps


@functools.lru_cache
def _generated() -> Dataset:
    """Noise: the time of a step does not depend on what is in the images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    stored = Stored(1 / 255, (0.5,), (0.25,), ("crop_flip", "none"))
    return Dataset("noise", images, labels, None, CLASSES, {"train": np.arange(BATCH, dtype=np.int32)}, stored)
