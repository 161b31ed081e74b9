"""train(config, store): the one loop for every stage."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax.config import default_run_name
from kdjax.data import make_order
from kdjax.data.protocols import describe
from kdjax.errors import RunError, UserError
from kdjax.store import Run, Store
from kdjax.training import metrics, parallel, steps
from kdjax.training import state as train_state
from kdjax.training.batch_loader import Feed
from kdjax.training.evaluation import evaluate, resident
from kdjax.training.plan import Plan, make_plan, manifest_of, resolve, traced
from kdjax.training.progress import Progress
from kdjax.training.signals import StopSignals

MOST_STEPS_A_DISPATCH = 256
MOST_STREAMED_STEPS = 8  # their images are in memory at once


def train(
    config: ConfigDict,
    store: Store,
    *,
    name: str = "",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
    show: bool = True,
    sink: Callable[[str, dict], None] | None = None,
) -> dict:
    """Trains one run, goes on with one that was stopped, or returns the result of one that is finished.

    Args:
      config: a whole config (`kdjax.config.defaults` and what an experiment changes).
      store: where its teachers are and where it goes.
      name: of the run; '' for the default of the config.
      data_dir: where data sets that are not embedded lie.
      devices: of this process; all of them by default.
      show: whether to show progress.
      sink: called with the run's path and each epoch's row, for a log elsewhere.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: a mistake in the config, the data, the teachers or the store.
      RunError: the loss was not finite; the last good checkpoint is kept.
      Interrupted: SIGINT or SIGTERM, after saving.
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
    plan = make_plan(config, store, data_dir, devices)  # a mistake in it leaves nothing behind
    with run.lock(), _nothing_left_of_a_mistake(run):
        run.begin(manifest_of(plan))
        if run.result is not None:  # another process was faster
            return run.result
        if show:
            for line in (*config.notes, *map(describe, plan.dataset.protocols)):
                print(f"{run.name} {line}", file=sys.stderr, flush=True)
        with StopSignals() as stop:
            result = Trainer(plan, run, stop, show, sink).fit()
            if stop.signum:  # it came in the last epoch: no other run of this process is begun
                stop.leave(f"run '{run.name}' is finished; the same command goes on from there.")
            return result


@contextlib.contextmanager
def _nothing_left_of_a_mistake(run: Run) -> Iterator[None]:
    """What only the first step's shapes tell must not hold the run's name against the config that mends it."""
    try:
        yield
    except RunError:
        raise
    except Exception:
        run.take_back()
        raise


@functools.lru_cache(maxsize=64)
def compiled(spec: steps.Spec, devices: tuple) -> Callable:
    """Returns the compiled `train_steps`, the same function for all runs that share a spec."""
    body = functools.partial(steps.train_steps, spec=spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, devices, donate_argnums=(0,))


def steps_a_dispatch(variables: dict, steps_per_epoch: int) -> int:
    """How many updates go to the device at once; the only place that decides it.

    Many where loops are fast. One on CPU for networks with convolutions (kernels of three axes and more), whose
    gradients XLA:CPU runs 17 times slower inside a loop.
    """
    has_convolutions = any(np.ndim(leaf) > 2 for leaf in jax.tree.leaves(variables["params"]))
    if jax.default_backend() == "cpu" and has_convolutions:
        return 1
    dispatches = math.ceil(steps_per_epoch / MOST_STEPS_A_DISPATCH)
    return math.ceil(steps_per_epoch / dispatches)


class Trainer:
    """One run from its first or its last saved step to its result."""

    def __init__(self, plan: Plan, run: Run, stop: StopSignals, show: bool, sink: Callable | None):
        self.plan, self.run, self.stop, self.show, self.sink = plan, run, stop, show, sink
        self.config, self.devices = plan.config, plan.devices
        self.traced = traced(plan.config)
        self.chunk = steps_a_dispatch(plan.variables, plan.spec.steps_per_epoch)
        if plan.dataset.streamed:
            self.chunk = min(self.chunk, MOST_STREAMED_STEPS)
        self.epochs = plan.config.warmup.epochs + plan.config.epochs
        self.feed = Feed(
            plan.dataset,
            make_order(plan.dataset, self.config.batch_size, self.config.seed),
            plan.spec.view,
            plan.devices,
            last=self.epochs * plan.spec.steps_per_epoch,
            workers=self.config.data.workers,
        )
        teachers = {name: teacher.variables for name, teacher in plan.teachers.items()}
        placed_teachers, numbers = parallel.replicate((teachers, plan.numbers), plan.devices)
        self.fixed = steps.Fixed(placed_teachers, resident(plan.dataset, plan.devices), numbers)
        self.best_state = None  # a copy on the device until it is written with the next checkpoint
        self._begin()

    def _begin(self) -> None:
        """Sets state, sums and progress to the run's newest checkpoint, or to the start."""
        state = train_state.create_state(self.plan.variables, self.plan.distiller, self.traced)
        leaves, structure = jax.tree.flatten(metrics.zeros(steps.train_metric_names(self.plan.spec)))
        saved = {"train": state, "sums": leaves}
        self.progress = {"epoch": 0, "step_in_epoch": 0, "best": None}
        if self.run.steps():
            saved, self.progress, _ = self.run.restore(saved)
        self.run.cut_metrics(self.progress["epoch"])
        sums = jax.tree.unflatten(structure, saved["sums"])
        self.state, self.sums = parallel.replicate((saved["train"], sums), self.devices)

    def fit(self) -> dict:
        """Trains to the end, writes the result and returns it."""
        shown = Progress(self.run.name, self.epochs, self.progress["epoch"], self.show)
        try:
            while self.progress["epoch"] < self.epochs:
                row = self._epoch()
                self.run.append_metrics(row)
                shown.epoch(row)
                if self.sink:
                    self.sink(str(self.run.path), row)
                self._save_if_due()
            result = self._result()
            self.run.wait()
            self.run.write_result(result)
            return result
        finally:
            shown.close()
            self.feed.close()
            self.run.close()

    def _epoch(self) -> dict:
        """Trains the rest of an epoch, evaluates, and returns its row."""
        config, spec = self.config, self._spec()
        epoch, first = self.progress["epoch"], self.progress["step_in_epoch"]
        if epoch == config.warmup.epochs and not first:
            self._forget_momentum()
        self.feed.forget()
        began = time.perf_counter()
        for start in range(first, spec.steps_per_epoch, self.chunk):
            end = min(start + self.chunk, spec.steps_per_epoch)
            self._dispatch(spec, epoch, start, end)
            if self.stop.signum and end < spec.steps_per_epoch:  # at its end the epoch is finished first
                self._stop(end)
        sums = self._fetch_sums()
        seconds = time.perf_counter() - began
        self._forget_sums()
        images = (spec.steps_per_epoch - first) * config.batch_size
        row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * spec.steps_per_epoch,
            "learning_rate": self._rate(spec),
            "images_per_second": images / max(seconds, 1e-9),
            **self._fed(),
            "train": metrics.means(sums.metrics),
            **self._evaluate(epoch + 1),
        }
        self.progress = {**self.progress, "epoch": epoch + 1, "step_in_epoch": 0}
        self._remember_best(row)
        row["seconds"] = time.perf_counter() - began
        return row

    def _spec(self) -> steps.Spec:
        """Of the phase that the next epoch belongs to."""
        return self.plan.warmup if self.progress["epoch"] < self.config.warmup.epochs else self.plan.spec

    def _forget_momentum(self) -> None:
        """Training proper begins with a fresh optimizer, as it does without a warm-up."""
        if self.plan.warmup is not None:
            fresh = train_state.optimizer(self.traced, rate=0.0).init(self.state.trainable)
            self.state = self.state.replace(opt_state=parallel.replicate(jax.device_get(fresh), self.devices))

    def _dispatch(self, spec: steps.Spec, epoch: int, start: int, end: int) -> None:
        batches = self.feed.batches(epoch, start, end - start)
        self.state, self.sums = compiled(spec, self.devices)((self.state, self.sums), self.fixed, batches)

    def _fed(self) -> dict:
        """What the epoch's batches were, where that is more than all examples once, with their labels."""
        feed, row = self.feed, {}
        if feed.unlabelled:
            row["examples"] = {"labelled": feed.labelled, "unlabelled": feed.unlabelled}
        if self.plan.dataset.streamed:
            row |= {"waited_for_data": feed.waited, "bad_images": feed.bad}
        return row

    def _fetch_sums(self) -> metrics.Sums:
        """Waits for the device, once an epoch; a loss that was not finite ends the run before anything is saved."""
        sums = jax.device_get(self.sums)
        if sums.first_bad_step != metrics.NEVER:
            self.run.wait()
            kept = self.run.steps()
            raise RunError(
                f"run '{self.run.name}': the loss was not finite at step {sums.first_bad_step}; lower "
                f"config.optimizer.learning_rate or check the losses. "
                f"{f'The checkpoint of step {max(kept)} is kept.' if kept else 'No checkpoint had been written.'}"
            )
        return sums

    def _forget_sums(self) -> None:
        self.sums = parallel.replicate(metrics.zeros(steps.train_metric_names(self.plan.spec)), self.devices)

    def _rate(self, spec: steps.Spec) -> float:
        """The learning rate of the epoch's last step."""
        last = np.int32((self.progress["epoch"] + 1) * spec.steps_per_epoch - 1)
        return float(steps.rate(last, self.traced, spec))

    def _evaluate(self, epoch: int) -> dict:
        if epoch % self.config.eval_every and epoch != self.epochs:
            return {}
        return {
            split: self._score(self.state, split)
            for split in ("validation", "test")
            if split in self.plan.dataset.splits
        }

    def _score(self, state, split: str) -> dict[str, float]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return evaluate(
            self.plan.spec.model, variables, self.plan.dataset, split, self.config.eval_batch_size, self.devices
        )

    def _remember_best(self, row: dict) -> None:
        """Best is by validation accuracy, the earliest of equals; the test split decides nothing."""
        best = self.progress["best"]
        if self.config.select != "validation" or "validation" not in row:
            return
        if row["epoch"] <= self.config.warmup.epochs:
            return
        if best is None or row["validation"]["accuracy"] > best["accuracy"]:
            found = {"epoch": row["epoch"], "step": row["step"], "accuracy": row["validation"]["accuracy"]}
            self.progress = {**self.progress, "best": found}
            self.best_state = jax.tree.map(jax.numpy.copy, self.state)  # the state itself is donated to the next step

    def _save_if_due(self) -> None:
        every, epoch = self.config.checkpoint.every_epochs, self.progress["epoch"]
        if self.stop.signum and epoch < self.epochs:
            self._stop(0)
        elif epoch == self.epochs or (every and epoch % every == 0):
            self._save()

    def _save(self) -> None:
        """Writes the best state, if it is newer than what is on disk, and then the present one."""
        best, step = self.progress["best"], self._step()
        keep = best["step"] if best else None
        if self.best_state is not None and keep != step:
            at_best = {"epoch": best["epoch"], "step_in_epoch": 0, "best": best}
            empty = metrics.zeros(steps.train_metric_names(self.plan.spec))
            self._write(keep, self.best_state, empty, at_best, keep)
        self._write(step, self.state, self.sums, self.progress, keep)
        self.best_state = None

    def _write(self, step: int, state, sums, progress: dict, keep: int | None) -> None:
        host = parallel.to_host({"train": state, "sums": jax.tree.leaves(sums)})  # by position: names hold '/'
        self.run.save(step, host, progress, keep_best=keep)

    def _step(self) -> int:
        return self.progress["epoch"] * self.plan.spec.steps_per_epoch + self.progress["step_in_epoch"]

    def _stop(self, step_in_epoch: int) -> None:
        """Saves where the run is and leaves."""
        self._fetch_sums()
        self.progress = {**self.progress, "step_in_epoch": step_in_epoch}
        self._save()
        self.run.wait()
        self.stop.leave(f"run '{self.run.name}' was saved at step {self._step()}; the same command goes on from there.")

    def _result(self) -> dict:
        """Scores the last and the best state on every split."""
        splits = [split for split in ("train", "validation", "test") if split in self.plan.dataset.splits]
        step = {"epoch": self.epochs, "step": self._step()}
        result = {"last": {**step, **{split: self._score(self.state, split) for split in splits}}}
        best = self.progress["best"]
        if best:
            state = self.state if best["step"] == self._step() else self._best_state(best["step"])
            scores = {split: self._score(state, split) for split in splits}
            result["best"] = {"epoch": best["epoch"], "step": best["step"], **scores}
        rows = self.run.metrics()
        if "validation" not in splits and "test" in splits:
            peak = max(row["test"]["accuracy"] for row in rows if "test" in row)
            result["max_over_epochs_on_test"] = {
                "accuracy": peak,
                "note": "chosen on the test split: not to be reported",
            }
        result["seconds"] = sum(row["seconds"] for row in rows)
        return result

    def _best_state(self, step: int) -> Any:
        self.run.wait()
        variables, _ = self.run.restore_variables(step)
        return self.state.replace(**parallel.replicate(variables, self.devices))
