"""Measures a train step of a config on 1, 2, ... devices."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench.results import Table, publish
from kdjax.bench.timing import in_turn, machine
from kdjax.data import Dataset, load_dataset
from kdjax.training.evaluation import make_batches
from kdjax.training.member import initial_carry
from kdjax.training.plan import Plan, plan_with, resolve
from kdjax.training.population import Population
from kdjax.training.teachers import Teacher
from kdjax.training.trainer import steps_a_dispatch

HEADER = ("devices", "batch", "milliseconds per step", "images per second", "speed relative to one device")


def show(flag: flags.FlagValues) -> None:
    """Prints the table that the command's flags ask for."""
    publish(flag, machine(), table(flag.config, flag.data_dir, flag.rounds, flag.steps))


def table(config: ConfigDict, data_dir: str, rounds: int, num_steps: int) -> Table:
    """Returns the time of a step and the images per second, for each number of devices that divides the batch.

    Teachers have new random weights, since weights do not change the time. Their network is taken from the name of the
    run (`DATASET/MODEL-...`), so no store is read.

    Args:
      config: Config of a teacher or a student.
      data_dir: Directory of the data sets.
      rounds: Number of measurements. In each of them, all numbers of devices are measured in turn.
      num_steps: Number of train steps in one measurement.
    """
    counts = [count for count in range(1, len(jax.local_devices()) + 1) if config.batch_size % count == 0]
    runs = {count: _runner(config, data_dir, jax.local_devices()[:count], num_steps) for count in counts}
    seconds = {count: [one / num_steps for one in taken] for count, taken in in_turn(runs, rounds).items()}
    return Table(HEADER, [_row(config, count, seconds) for count in counts])


def _row(config: ConfigDict, count: int, seconds: dict[int, list[float]]) -> tuple:
    median = statistics.median(seconds[count])
    ratio = statistics.median(one / many for one, many in zip(seconds[1], seconds[count], strict=True))
    return count, config.batch_size, f"{1000 * median:.1f}", f"{config.batch_size / median:.0f}", f"{ratio:.2f}"


def _runner(config: ConfigDict, data_dir: str, devices: Sequence, num_steps: int) -> Callable[[], Any]:
    config = resolve(config)
    dataset = load_dataset(config.data, data_dir)
    teachers = {name: fresh_teacher(config, fields, dataset) for name, fields in config.teachers.items()}
    return stepping(Population([plan_with(config, dataset, teachers, devices)]), num_steps)


def stepping(population: Population, num_steps: int) -> Callable[[], Any]:
    """Returns a function that makes `num_steps` updates of all members, dispatched as in a run.

    It returns the arrays to wait for.
    """
    plan = population.plans[0]
    chunk = min(steps_a_dispatch(population.plans), num_steps)
    step = population.compiled(plan.config.warmup.epochs)
    carried = [population.place([initial_carry(plan) for plan in population.plans])]

    def run() -> Any:
        made = 0
        while made < num_steps:
            epoch, first = divmod(made, plan.spec.steps_per_epoch)
            count = min(chunk, num_steps - made, plan.spec.steps_per_epoch - first)
            carried[0] = step(carried[0], population.fixed, population.batches(epoch, first, count))
            made += count
        return carried[0]

    return run


class CompiledStep(NamedTuple):
    """A compiled train step.

    Attributes:
      run: Makes one update and returns the arrays to wait for.
      compile_seconds: Seconds that the compilation took.
    """

    run: Callable[[], Any]
    compile_seconds: float


def compiled_step(plan: Plan, batch_size: int) -> CompiledStep:
    """Compiles the train step of a plan for the first rows of its data."""
    population = Population([plan])
    index = np.arange(batch_size, dtype=np.int32)[None]
    batches = make_batches(index, np.ones(index.shape, bool), 0, plan.devices)
    carried = [population.place([initial_carry(plan)])]
    lowered = population.compiled(plan.config.warmup.epochs).lower(carried[0], population.fixed, batches)
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began

    def run() -> Any:
        carried[0] = compiled(carried[0], population.fixed, batches)
        return carried[0]

    return CompiledStep(run, compile_seconds)


def fresh_teacher(config: ConfigDict, fields: ConfigDict, dataset: Dataset) -> Teacher:
    """Returns a float32 teacher with random weights and the network that the name of its run says."""
    name = fields.run.rsplit("/", 1)[-1].partition("-")[0]
    model = models.create_model(name, dataset.num_classes)
    variables = models.init_variables(model, (1, *dataset.input_shape), 1)
    return Teacher(model, variables, dataset.num_classes, "softmax", {}, None)
