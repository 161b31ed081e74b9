"""train(config, store): the one loop for every stage."""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from kdjax.config import default_run_name
from kdjax.data import make_order
from kdjax.data.protocols import describe
from kdjax.errors import RunError, UserError
from kdjax.store import Run, Store
from kdjax.training import metrics, parallel, steps
from kdjax.training import state as train_state
from kdjax.training.batch_loader import BatchLoader
from kdjax.training.display import EpochDisplay
from kdjax.training.evaluation import resident
from kdjax.training.member import Member, Scores
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan, make_plan, manifest_of, resolve, traced
from kdjax.training.signals import StopSignals
from kdjax.training.spec import Fixed, Spec
from kdjax.types import Config, Device

MOST_STEPS_A_DISPATCH = 256
MOST_STREAMED_STEPS = 8  # their images are in memory at once

Sink = Callable[[str, dict], None]  # (path of the run, row of metrics.jsonl)


def train(
    config: Config,
    store: Store,
    *,
    name: str = "",
    data_dir: str = "data",
    devices: Sequence[Device] | None = None,
    show: bool = True,
    sink: Sink | None = None,
) -> dict:
    """Trains a run, resumes one that was stopped, or returns the result of one that is finished.

    Args:
      config: A whole config (`kdjax.config.defaults` and what an experiment changes).
      store: The store that has the teachers and gets the run.
      name: Name of the run, '' for the default of the config.
      data_dir: Directory of the data sets that are not embedded.
      devices: Devices of this process; all of them by default.
      show: Whether to show progress.
      sink: Called with the run's path and each epoch's row, for a log elsewhere.

    Returns:
      The contents of `result.json`.

    Raises:
      UserError: There is a mistake in the config, the data, the teachers or the store.
      RunError: The loss was not finite; the last good checkpoint is kept.
      Interrupted: SIGINT or SIGTERM came; the run was saved.
    """
    config = resolve(config)
    devices = tuple(devices or jax.local_devices())
    run = store.run(name or default_run_name(config))
    for label, teacher in config.teachers.items():
        if teacher.run == run.name:
            raise UserError(f"config.teachers.{label}.run: '{run.name}' is this run; a run cannot be its own teacher.")
    if run.manifest is not None:
        run.begin({"config": config.to_dict()})  # refuses a changed config before anything is loaded
        if run.result is not None:
            return run.result
    plan = make_plan(config, store, data_dir, devices)  # a mistake found here leaves nothing behind
    with run.lock(), _discarded_if_empty(run):
        run.begin(manifest_of(plan))
        if run.result is not None:  # another process was faster
            return run.result
        if show:
            for line in (*config.notes, *map(describe, plan.dataset.protocols)):
                print(f"{run.name} {line}", file=sys.stderr, flush=True)
        with StopSignals() as stop:
            result = Trainer(plan, run, stop, show, sink).fit()
            if stop.signum:  # it came in the last epoch; the process must not begin another run
                stop.leave(f"run '{run.name}' is finished; repeat the command to go on from there.")
            return result


@contextlib.contextmanager
def _discarded_if_empty(run: Run) -> Iterator[None]:
    """Deletes the manifest if the run fails before its first checkpoint; a corrected config can then use its name."""
    try:
        yield
    except RunError:
        raise
    except Exception:
        run.discard_if_empty()
        raise


@functools.lru_cache(maxsize=64)
def compiled(spec: Spec, devices: tuple[Device, ...]) -> Callable:
    """Returns the compiled `train_steps`, the same function for all runs that share a spec."""
    body = functools.partial(steps.train_steps, spec=spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, devices, donate_argnums=(0,))


def steps_a_dispatch(variables: dict, steps_per_epoch: int) -> int:
    """Returns how many updates go to the device at once.

    Many where loops are fast. One on CPU for networks with convolutions (kernels of three axes and more), whose
    gradients XLA:CPU runs 17 times slower inside a loop.
    """
    has_convolutions = any(np.ndim(leaf) > 2 for leaf in jax.tree.leaves(variables["params"]))
    if jax.default_backend() == "cpu" and has_convolutions:
        return 1
    dispatches = math.ceil(steps_per_epoch / MOST_STEPS_A_DISPATCH)
    return math.ceil(steps_per_epoch / dispatches)


def place_fixed(plan: Plan) -> Fixed:
    """Places what a plan's steps read and never change on its devices."""
    teachers = {name: teacher.variables for name, teacher in plan.teachers.items()}
    teachers, numbers = parallel.replicate((teachers, plan.numbers), plan.devices)
    return Fixed(teachers, resident(plan.dataset, plan.devices), numbers)


def make_loader(plan: Plan) -> BatchLoader:
    """Returns the loader of a plan's batches."""
    return BatchLoader(
        plan.dataset,
        make_order(plan.dataset, plan.config.batch_size, plan.config.seed),
        plan.spec.view,
        plan.devices,
        last=plan.epochs * plan.spec.steps_per_epoch,
        workers=plan.config.data.workers,
    )


class Trainer:
    """Trains a run from its first or its last saved step to its result."""

    def __init__(self, plan: Plan, run: Run, stop: StopSignals, show: bool, sink: Sink | None):
        self.plan, self.run, self.stop, self.show, self.sink = plan, run, stop, show, sink
        self.chunk = steps_a_dispatch(plan.variables, plan.spec.steps_per_epoch)
        if plan.dataset.streamed:
            self.chunk = min(self.chunk, MOST_STREAMED_STEPS)
        self.loader, self.fixed = make_loader(plan), place_fixed(plan)
        self.member = Member(plan, run)
        self.state, self.sums = parallel.replicate(self.member.restore(), plan.devices)

    def fit(self) -> dict[str, Any]:
        """Trains to the end, writes the result and returns it."""
        display = EpochDisplay(self.run.name, self.plan.epochs, self.member.progress.epoch, self.show)
        try:
            while not self.member.finished:
                row = self._epoch()
                self.run.append_metrics(row)
                display.epoch(row)
                if self.sink:
                    self.sink(str(self.run.path), row)
                self._save_if_due()
            return self.member.finish(self.state)
        finally:
            display.close()
            self.loader.close()
            self.run.close()

    def _epoch(self) -> dict[str, Any]:
        """Trains the rest of an epoch, evaluates, and returns its row of metrics.jsonl."""
        progress = self.member.progress
        epoch, first, spec = progress.epoch, progress.step_in_epoch, self.plan.spec_at(progress.epoch)
        if epoch == self.plan.config.warmup.epochs and not first:
            self._reset_optimizer()
        self.loader.reset_counts()
        began = time.perf_counter()
        self._train(spec, epoch, first)
        sums = self._fetch_sums()
        seconds = time.perf_counter() - began
        self.sums = parallel.replicate(self.member.zero_sums, self.plan.devices)
        images = (spec.steps_per_epoch - first) * self.plan.config.batch_size
        scores = self._score_held_out(epoch + 1)
        row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * spec.steps_per_epoch,
            "learning_rate": _rate(self.plan, epoch),
            "images_per_second": images / max(seconds, 1e-9),
            **self.loader.counts(),
            "train": metrics.means(sums.metrics),
            **scores,
        }
        self.member.finish_epoch(scores, self.state)
        return {**row, "seconds": time.perf_counter() - began}

    def _train(self, spec: Spec, epoch: int, first: int) -> None:
        """Makes the updates of an epoch from update `first` on."""
        for start in range(first, spec.steps_per_epoch, self.chunk):
            end = min(start + self.chunk, spec.steps_per_epoch)
            self._dispatch(spec, epoch, start, end)
            if self.stop.signum and end < spec.steps_per_epoch:  # after its last update an epoch is finished first
                self._stop(end)

    def _dispatch(self, spec: Spec, epoch: int, start: int, end: int) -> None:
        batches = self.loader.batches(epoch, start, end - start)
        self.state, self.sums = compiled(spec, self.plan.devices)((self.state, self.sums), self.fixed, batches)

    def _reset_optimizer(self) -> None:
        """Begins training proper with a fresh optimizer after a warm-up, as it begins without one."""
        if self.plan.warmup is not None:
            fresh = train_state.optimizer(traced(self.plan.config), rate=0.0).init(self.state.trainable)
            fresh = parallel.replicate(jax.device_get(fresh), self.plan.devices)
            self.state = dataclasses.replace(self.state, opt_state=fresh)

    def _fetch_sums(self) -> Sums:
        """Waits for the devices, and returns the sums if every loss was finite."""
        sums = jax.device_get(self.sums)
        self.member.check_finite(sums)
        return sums

    def _score_held_out(self, epoch: int) -> Scores:
        """Returns the scores of the held-out splits, {} after an epoch that is not evaluated."""
        if epoch % self.plan.config.eval_every and epoch != self.plan.epochs:
            return {}
        return self.member.score(self.state, ("validation", "test"))

    def _save_if_due(self) -> None:
        every, epoch = self.plan.config.checkpoint.every_epochs, self.member.progress.epoch
        if self.stop.signum and not self.member.finished:
            self._stop(0)
        elif self.member.finished or (every and epoch % every == 0):
            self.member.save(self.state, self.sums)

    def _stop(self, step_in_epoch: int) -> NoReturn:
        """Saves the run and leaves."""
        self._fetch_sums()
        self.member.stop_in_epoch(step_in_epoch)
        self.member.save(self.state, self.sums)
        self.run.wait()
        self.stop.leave(
            f"run '{self.run.name}' was saved at step {self.member.step}; repeat the command to go on from there."
        )


def _rate(plan: Plan, epoch: int) -> float:
    """Returns the learning rate of the last update of an epoch."""
    spec = plan.spec_at(epoch)
    return float(steps.rate(np.int32((epoch + 1) * spec.steps_per_epoch - 1), traced(plan.config), spec))
