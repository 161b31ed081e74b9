"""Measures a step of several runs that are trained together, in every layout, against the same runs one by one."""

import statistics
from collections.abc import Mapping, Sequence

import jax
from absl import flags
from ml_collections import ConfigDict

from kdjax.bench.results import Table, publish
from kdjax.bench.step import fresh_teacher, stepping
from kdjax.bench.timing import in_turn, machine
from kdjax.data import load_dataset
from kdjax.training.plan import Plan, plan_with, resolve
from kdjax.training.population import Population, layout_of
from kdjax.training.together import STEPS
from kdjax.types import Device

ALONE = "one by one"
HEADER = ("layout", "chosen by the table", "milliseconds per step of all", "speed, median", "speed, fastest rounds")


def show(flag: flags.FlagValues) -> None:
    """Prints the table that the command's flags ask for."""
    found = table(flag.config, flag.data_dir, flag.rounds, flag.steps, flag.members, flag.only)
    publish(flag, f"{machine()}, {flag.members} runs", found)


def table(
    config: ConfigDict, data_dir: str, rounds: int, num_steps: int, members: int, layouts: Sequence[str] = ()
) -> Table:
    """Returns the time of a step of several runs together and its speed relative to the runs one by one.

    The runs differ in their seed alone; they share teacher, order and views (`config.data.order_seed`). Teachers have
    new random weights, and their network is taken from the name of the run.

    Args:
      config: Config of a teacher or a student.
      data_dir: Directory of the data sets.
      rounds: Number of measurements. In each of them, all layouts are measured in turn.
      num_steps: Number of train steps in one measurement.
      members: Number of runs.
      layouts: Layouts to measure, () for all.
    """
    plans = make_plans(config, data_dir, members, jax.local_devices())
    runs = {layout: stepping(Population(plans, layout), num_steps) for layout in (layouts or STEPS)}
    one = stepping(Population(plans[:1]), num_steps)
    runs[ALONE] = lambda: [one() for _ in range(members)][-1]
    seconds = in_turn(runs, rounds)
    return Table(HEADER, [_row(layout, layout_of(plans[0]), seconds, num_steps) for layout in runs])


def make_plans(config: ConfigDict, data_dir: str, members: int, devices: Sequence[Device]) -> list[Plan]:
    """Returns plans that differ in their seed and share everything else."""
    dataset, plans = load_dataset(config.data, data_dir), []
    teachers = {name: fresh_teacher(config, fields, dataset) for name, fields in config.teachers.items()}
    for seed in range(members):
        own = ConfigDict(config.to_dict())
        own.seed, own.data.order_seed = seed, 0
        plans.append(plan_with(resolve(own), dataset, teachers, devices))
    return plans


def _row(layout: str, chosen: str, seconds: Mapping[str, list[float]], num_steps: int) -> tuple:
    own, alone = seconds[layout], seconds[ALONE]
    median = statistics.median(a / b for a, b in zip(alone, own, strict=True))
    fastest = min(alone) / min(own)
    milliseconds = 1000 * statistics.median(own) / num_steps
    return layout, "yes" if layout == chosen else "", f"{milliseconds:.1f}", f"{median:.2f}", f"{fastest:.2f}"
