"""Times a train step of a config on 1, 2, ... devices, in turn."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import models
from kdjax.data import load_dataset
from kdjax.reporting.tables import markdown
from kdjax.training import loop, metrics, parallel, steps
from kdjax.training import state as train_state
from kdjax.training.evaluation import make_batches, resident
from kdjax.training.manifest import versions
from kdjax.training.plan import Plan, plan_with, resolve, traced
from kdjax.training.teachers import Teacher


def show(flag: Any) -> None:
    """Prints the table that the command's flags ask for."""
    print(table(flag.config, flag.data_dir, flag.rounds, flag.steps))


def table(config: ConfigDict, data_dir: str, rounds: int, num_steps: int) -> str:
    """Returns milliseconds a step and images a second, for each count of devices that divides the batch.

    Teachers are built from `config.teachers.NAME.run`'s network name (`DATASET/MODEL-...`) with fresh weights, since
    weights do not change the time; no store is read.

    Args:
      config: of a teacher or a student.
      data_dir: where data sets that are not embedded lie.
      rounds: of measurements; the devices' turns alternate within each.
      num_steps: train steps a turn, after one turn that compiles.
    """
    counts = [count for count in range(1, len(jax.local_devices()) + 1) if config.batch_size % count == 0]
    runners = {count: _runner(config, data_dir, jax.local_devices()[:count], num_steps) for count in counts}
    for run in runners.values():
        run()
    seconds = {count: [] for count in counts}
    for _ in range(rounds):
        for count, run in runners.items():
            began = time.perf_counter()
            run()
            seconds[count].append((time.perf_counter() - began) / num_steps)
    rows = [_row(config, count, seconds) for count in counts]
    return f"{machine()}\n\n{markdown(('devices', 'batch', 'ms a step', 'images/s', 'ratio to 1 device'), rows)}"


def _row(config: ConfigDict, count: int, seconds: dict[int, list[float]]) -> tuple:
    median = statistics.median(seconds[count])
    ratio = statistics.median(one / many for one, many in zip(seconds[1], seconds[count], strict=True))
    return count, config.batch_size, f"{1000 * median:.1f}", f"{config.batch_size / median:.0f}", f"{ratio:.2f}"


def machine() -> str:
    """One line: processor, cores, backend, versions."""
    found = versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "jax", "flax", "numpy"))
    kind = jax.devices()[0].device_kind
    return f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} ({kind}), {packages}"


def _runner(config: ConfigDict, data_dir: str, devices, num_steps: int) -> Callable[[], None]:
    """Returns a function that makes `num_steps` updates, in dispatches as a run makes them, and waits for them."""
    config = resolve(config)
    dataset = load_dataset(config.data, data_dir)
    teachers = {name: fresh_teacher(config, fields, dataset) for name, fields in config.teachers.items()}
    plan = plan_with(config, dataset, teachers, devices)
    chunk = min(loop.steps_a_dispatch(plan.variables, plan.spec.steps_per_epoch), num_steps)
    index = _indices(dataset.splits["train"], num_steps, config.batch_size)
    placed, fixed = place(plan)
    compiled, carry = loop.compiled(plan.spec, tuple(devices)), [placed]

    def run() -> None:
        for start in range(0, num_steps, chunk):
            part = index[start : start + chunk]
            batches = make_batches(part, np.ones(part.shape, bool), 0, devices)
            carry[0] = compiled(carry[0], fixed, batches)
        jax.block_until_ready(carry[0])

    return run


def place(plan: Plan) -> tuple[tuple, steps.Fixed]:
    """Returns on the plan's devices what a step carries on before the first one, and what it only reads."""
    state = train_state.create_state(plan.variables, plan.distiller, traced(plan.config))
    sums = metrics.zeros(steps.train_metric_names(plan.spec))
    taught = {name: teacher.variables for name, teacher in plan.teachers.items()}
    taught, numbers, *carry = parallel.replicate((taught, plan.numbers, state, sums), plan.devices)
    return tuple(carry), steps.Fixed(taught, resident(plan.dataset, plan.devices), numbers)


def one_step(plan: Plan, batch_size: int) -> tuple[Any, tuple]:
    """Returns the compiled step's lowering for the first rows of the data, and its arguments."""
    carry, fixed = place(plan)
    index = np.arange(batch_size, dtype=np.int32)[None]
    batches = make_batches(index, np.ones(index.shape, bool), 0, plan.devices)
    body = functools.partial(steps.train_steps, spec=plan.spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, plan.devices).lower(carry, fixed, batches), (carry, fixed, batches)


def _indices(rows: np.ndarray, num_steps: int, batch_size: int) -> np.ndarray:
    return np.resize(rows, num_steps * batch_size).astype(np.int32).reshape(num_steps, batch_size)


def fresh_teacher(config: ConfigDict, fields: ConfigDict, dataset) -> Teacher:
    """Returns a teacher of fresh weights with the network that a run's name says."""
    name = fields.run.rsplit("/", 1)[-1].partition("-")[0]
    model = models.create_model(name, dataset.num_classes, dtype=config.model.dtype)
    variables = models.init_variables(model, (1, *dataset.input_shape), 1)
    return Teacher(model, variables, dataset.num_classes, "softmax", {}, None)
