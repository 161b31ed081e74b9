"""Measures training on a GPU or TPU in one command: python -m kdjax.bench gpu --seconds=540.

Each cell of the table is a pair of networks, a batch size, a type and a number of students of one teacher; the program
is that of a training run. Cells come in order of importance, and the table is printed and left as JSON after each, so
that a limit on the time cuts off what matters least. Beside one student stand the same steps in PyTorch, if torch is
installed. On a CPU everything runs too, which tests that the command works: name a small pair by --only there. No
figure of a GPU was measured with it yet.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from kdjax.bench import rival, torch_networks
from kdjax.bench.pairs import ROWS, Pair, make_plans, parse
from kdjax.bench.results import Table, publish
from kdjax.bench.step import stepping
from kdjax.bench.timing import in_turn, machine
from kdjax.training.device_choice import step_work
from kdjax.training.plan import Plan
from kdjax.training.population import IN_TURN, Population, layout_of
from kdjax.training.trainer import MOST_STEPS_A_DISPATCH

PAIRS = (Pair("resnet32x4", "resnet8x4"), Pair("resnet56", "resnet20"))
BATCHES, DTYPES, MEMBERS = (64, 512), ("bfloat16", "float32"), (1, 8)  # the most important one first
EPOCHS = 240  # of the papers' recipe for CIFAR
KERNELS = 8  # of a profile that are shown
NOT_MEASURED = "-"
HEADER = (
    *("pair", "batch", "type", "students", "milliseconds per step", "images per second", "share of peak"),
    *(f"seconds for {EPOCHS} epochs", "torch, ms per step", "torch compiled, ms per step"),
)
KERNEL_HEADER = ("pair", "batch", "type", "students", "rank", "kernel", "share of the kernels' time")


class Cell(NamedTuple):
    """What one row of the table measures.

    Attributes:
      pair: Teacher and student.
      batch_size: Images in a batch.
      dtype: Type of the computation.
      members: Number of students that are trained in one step.
    """

    pair: Pair
    batch_size: int
    dtype: str
    members: int


def show(flag: flags.FlagValues) -> None:
    """Measures cells until the time is over, and prints and saves the table after each."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax would leave no memory of the GPU to torch
    flag.json = flag.json or "gpu.json"
    steps = _default_steps() if flag["steps"].using_default_value else flag.steps
    note = f"{machine()}; at most {flag.seconds:.0f} s"
    note += "" if rival.has_torch() else "; torch is not installed, so there is nothing to compare with"
    rows, kernels = [], []
    for row, top in measured(cells_of(parse(flag.only, PAIRS)), flag.seconds, flag.rounds, steps):
        rows.append(row)
        kernels += top
        publish(flag, note, Table(HEADER, rows, keys=4), Table(KERNEL_HEADER, kernels, keys=5))
        print(flush=True)


def _default_steps() -> int:
    return 2 if jax.default_backend() == "cpu" else 2 * MOST_STEPS_A_DISPATCH


def cells_of(pairs: Sequence[Pair]) -> list[Cell]:
    """Returns the cells in order of importance: those first that differ least from the most important settings."""
    found = [Cell(*values) for values in product(pairs, BATCHES, DTYPES, MEMBERS)]
    first = (BATCHES[0], DTYPES[0], MEMBERS[0])
    return sorted(found, key=lambda cell: sum(a != b for a, b in zip(cell[1:], first, strict=True)))


def measured(cells: Sequence[Cell], seconds: float, rounds: int, steps: int) -> Iterator[tuple[tuple, list[tuple]]]:
    """Yields the row of each cell and the rows of its kernels, as long as a cell is likely to fit into the time.

    Args:
      cells: The cells; the first one is always measured.
      seconds: The time for all. No cell begins that would end later if it took as long as the longest before it.
      rounds: Number of measurements, of which the median is shown.
      steps: Number of train steps in one measurement.
    """
    began, longest = time.perf_counter(), 0.0
    peaks: dict[str, float] = {}
    for number, cell in enumerate(cells):
        started = time.perf_counter()
        if number and started - began + longest > seconds:
            return
        if cell.dtype not in peaks:
            peaks[cell.dtype] = measured_peak(cell.dtype)
        yield measure(cell, rounds, steps, peaks[cell.dtype])
        longest = max(longest, time.perf_counter() - started)


def measure(cell: Cell, rounds: int, steps: int, peak: float) -> tuple[tuple, list[tuple]]:
    """Returns the row of a cell and the rows of its longest kernels.

    Args:
      cell: What is measured, on the first device.
      rounds: Number of measurements.
      steps: Number of train steps in one measurement.
      peak: FLOP/s that count as all that the device can do.
    """
    rows = min(ROWS, cell.batch_size * steps)
    plans = make_plans(*cell, rows, jax.local_devices()[:1])
    runs: dict[str, Callable[[], Any]] = {"kdjax": _together(plans, steps)}
    if cell.members == 1 and rival.has_torch() and torch_networks.has(cell.pair):
        forms = (rival.CHANNELS_LAST, rival.COMPILED) if jax.default_backend() == "gpu" else (rival.CHANNELS_LAST,)
        runs |= {form: rival.torch_step(*cell[:3], form, steps) for form in forms}
    taken = {name: statistics.median(all_of) / steps for name, all_of in in_turn(runs, rounds).items()}
    own, images = taken["kdjax"], cell.batch_size * cell.members
    flops = 2 * sum(map(step_work, plans)) - 2 * (cell.members - 1) * _teachers_work(plans)
    row = (
        *map(str, cell),
        f"{1000 * own:.3f}",
        f"{images / own:.0f}",
        f"{flops / own / peak:.3f}",
        f"{EPOCHS * ROWS / cell.batch_size * own:.0f}",
        *(
            f"{1000 * taken[form]:.3f}" if form in taken else NOT_MEASURED
            for form in (rival.CHANNELS_LAST, rival.COMPILED)
        ),
    )
    top = top_kernels(runs["kdjax"])
    return row, [(*map(str, cell), rank, name, f"{share:.3f}") for rank, (name, share) in enumerate(top, start=1)]


def _together(plans: Sequence[Plan], steps: int) -> Callable[[], Any]:
    """Returns a function that makes updates of all plans: in one step, or in turn where a run would train them so."""
    if len(plans) > 1 and layout_of(plans[0]) == IN_TURN:
        alone = [stepping(Population([plan]), steps) for plan in plans]
        return lambda: [run() for run in alone]
    return stepping(Population(plans), steps)


def measured_peak(dtype: str) -> float:
    """Returns the FLOP/s of a product of large matrices, the most that a network could reach."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product_of = jax.jit(lambda a: a @ a)
    return 2 * side**3 / min(in_turn({"": lambda: product_of(matrix)}, rounds=5, calls=4)[""])


def _teachers_work(plans: Sequence[Plan]) -> float:
    """Returns the multiply-adds of the teacher's pass, which the students share."""
    alone = plans[0]._replace(spec=plans[0].spec._replace(teachers=()))
    return step_work(plans[0]) - step_work(alone)


def top_kernels(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """Returns the longest kernels of a call and their shares of the time of all kernels, by jax's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        taken: Counter[str] = Counter()
        for file in pathlib.Path(folder).rglob("*.xplane.pb"):
            taken.update(_kernel_times(jax.profiler.ProfileData.from_file(str(file))))
    whole = sum(taken.values())
    return [(name, nanoseconds / whole) for name, nanoseconds in taken.most_common(KERNELS)]


def _kernel_times(profile: Any) -> Counter[str]:
    """Returns the nanoseconds of each kernel: of the devices' streams, or on CPU of XLA's threads."""
    taken: Counter[str] = Counter()
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    for plane in devices or profile.planes:
        for line in plane.lines:
            if line.name.startswith(("Stream", "XLA Ops") if devices else "tf_XLA"):
                for event in line.events:
                    taken[event.name.partition(".")[0]] += int(event.duration_ns)
    return taken
