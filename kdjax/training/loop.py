"""train(config, store): the one loop for every stage. It trains populations; a run is a population of one."""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from kdjax.config import default_run_name
from kdjax.data.protocols import describe
from kdjax.errors import RunError, UserError
from kdjax.store import Run, Store
from kdjax.training import metrics, parallel, steps
from kdjax.training import state as train_state
from kdjax.training.display import EpochDisplay
from kdjax.training.evaluation import resident
from kdjax.training.member import Member, Scores
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan, make_plan, manifest_of, resolve, traced
from kdjax.training.population import Population, compiled_population, group_plans, has_convolutions
from kdjax.training.signals import StopSignals
from kdjax.training.spec import Fixed, Spec
from kdjax.training.state import TrainState
from kdjax.training.structure import combine
from kdjax.training.teacher_logits import cached_logits
from kdjax.training.teachers import LoadedTeachers
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
    options = {"data_dir": data_dir, "devices": devices, "show": show, "sink": sink}
    return train_together([config], store, names=[name], **options)[0]


def train_together(
    configs: Sequence[Config],
    store: Store,
    *,
    names: Sequence[str] = (),
    data_dir: str = "data",
    devices: Sequence[Device] | None = None,
    show: bool = True,
    sink: Sink | None = None,
    finished: Callable[[str], None] = lambda name: None,
) -> list[dict]:
    """Trains runs that do not need one another, in one step where they can share it, and returns their results.

    Runs that can share a step are trained as a population (see `kdjax.training.population`); each is an ordinary run,
    equal to the run trained alone, and can be resumed alone or with others. All others are trained in turn.

    Args:
      configs: Whole configs.
      store: The store that has the teachers and gets the runs.
      names: Name of each run, '' for the default of its config; () for all defaults.
      data_dir: Directory of the data sets that are not embedded.
      devices: Devices of this process; all of them by default.
      show: Whether to show progress.
      sink: Called with the run's path and each epoch's row, for a log elsewhere.
      finished: Called with the name of each run that is finished.

    Returns:
      The contents of `result.json` of each run.

    Raises:
      UserError: There is a mistake in a config, the data, the teachers or the store.
      RunError: A loss was not finite; the other runs of its population are finished, and its last good checkpoint is
        kept.
      Interrupted: SIGINT or SIGTERM came; the runs that were being trained were saved.
    """
    devices = tuple(devices or jax.local_devices())
    session = _Session(store, data_dir, devices, show, sink, {})
    results: dict[str, dict] = {}
    jobs = []
    for config, name in zip(configs, names or [""] * len(configs), strict=True):
        with _naming(name or default_run_name(config), several=len(configs) > 1):
            jobs.append(_prepare(config, name, session, results))
    for name in results:
        finished(name)
    _refuse_other_configs_of_one_name(jobs)
    with contextlib.ExitStack() as stack:
        new = [job for job in {job.run.name: job for job in jobs}.values() if job.plan is not None]
        for job in new:
            stack.enter_context(job.run.lock())
        new = [job for job in new if not _finished_meanwhile(job, results)]
        members = [Member(job.plan, job.run) for job in new]
        carries = [member.restore() for member in members]
        progress = [(member.progress.epoch, member.progress.step_in_epoch) for member in members]
        for group in group_plans([job.plan for job in new], progress):
            some = [members[i] for i in group]
            with _naming(some[0].run.name, several=len(configs) > 1):
                trained = _train_population(some, [carries[i] for i in group], session)
            for member, result in zip(some, trained, strict=True):
                results[member.run.name] = result
                finished(member.run.name)
    return [results[job.run.name] for job in jobs]


@contextlib.contextmanager
def _naming(name: str, *, several: bool) -> Iterator[None]:
    """Begins a mistake's message with the name of its run, where there are several runs."""
    try:
        yield
    except UserError as error:
        if several and f"run '{name}'" not in str(error):
            raise UserError(f"run '{name}': {error}") from error
        raise


def _refuse_other_configs_of_one_name(jobs: Sequence["_Job"]) -> None:
    first: dict[str, _Job] = {}
    for job in jobs:
        if first.setdefault(job.run.name, job).config.to_dict() != job.config.to_dict():
            raise UserError(f"two of the runs have different configs and one name, '{job.run.name}'; rename one.")


def _finished_meanwhile(job: "_Job", results: dict[str, dict]) -> bool:
    """Whether another process has finished the run since it was planned; refuses one that it began otherwise."""
    if job.run.manifest is not None:
        job.run.begin({"config": job.config.to_dict()})
    result = job.run.result
    if result is not None:
        results[job.run.name] = result
    return result is not None


class _Session(NamedTuple):
    """What all runs of one call share."""

    store: Store
    data_dir: str
    devices: tuple[Device, ...]
    show: bool
    sink: Sink | None
    teachers: LoadedTeachers


class _Job(NamedTuple):
    """A run that was asked for, with its resolved config; its plan is None where it is finished."""

    run: Run
    config: Config
    plan: Plan | None


def _prepare(config: Config, name: str, session: _Session, results: dict[str, dict]) -> _Job:
    """Checks a config and plans its run, unless the run is finished: then its result is put into `results`."""
    config = resolve(config)
    run = session.store.run(name or default_run_name(config))
    for label, teacher in config.teachers.items():
        if teacher.run == run.name:
            raise UserError(f"config.teachers.{label}.run: '{run.name}' is this run; a run cannot be its own teacher.")
    if run.manifest is not None:
        run.begin({"config": config.to_dict()})  # refuses a changed config before anything is loaded
        if run.result is not None:
            results[run.name] = run.result
            return _Job(run, config, None)
    plan = make_plan(config, session.store, session.data_dir, session.devices, loaded=session.teachers)
    return _Job(run, config, plan)


def _train_population(members: list[Member], carries: list, session: _Session) -> list[dict]:
    """Trains members in one step, from what they carry to their results."""
    runs = [member.run for member in members]
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(_discarded_if_empty(run))
        population = Population([member.plan for member in members])
        for member in members:
            own = {"layout": population.layout, "members": [run.name for run in runs]}
            member.run.begin({**manifest_of(member.plan), **({"population": own} if len(runs) > 1 else {})})
            if session.show:
                for line in (*member.plan.config.notes, *map(describe, member.plan.dataset.protocols)):
                    print(f"{member.run.name} {line}", file=sys.stderr, flush=True)
        if session.show and len(runs) > 1:
            print(population.describe(), file=sys.stderr, flush=True)
        with StopSignals() as stop:
            results = Trainer(population, members, carries, stop, session.show, session.sink).fit()
            if stop.signum:  # it came in the last epoch; the process must not begin another run
                stop.leave(f"{_listed(runs)} finished; repeat the command to go on from there.")
            return results


def _listed(runs: Sequence[Run]) -> str:
    """Returns the beginning of a sentence about some runs."""
    first = f"run '{runs[0].name}'"
    return f"{first} is" if len(runs) == 1 else f"{len(runs)} runs, {first} among them, are"


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
    if jax.default_backend() == "cpu" and has_convolutions(variables):
        return 1
    dispatches = math.ceil(steps_per_epoch / MOST_STEPS_A_DISPATCH)
    return math.ceil(steps_per_epoch / dispatches)


def place_fixed(plan: Plan) -> Fixed:
    """Places what a plan's steps read and never change on its devices."""
    teachers = {spec.name: plan.teachers[spec.name].variables for spec in plan.spec.teachers if not spec.cached}
    placed = parallel.replicate((teachers, plan.numbers, cached_logits(plan)), plan.devices)
    return Fixed(placed[0], resident(plan.dataset, plan.devices), placed[1], placed[2])


class Trainer:
    """Trains a population from its first or its last saved step to its results."""

    def __init__(
        self,
        population: Population,
        members: Sequence[Member],
        carries: Sequence[tuple[TrainState, Sums]],
        stop: StopSignals,
        show: bool,
        sink: Sink | None,
    ):
        self.population, self.members, self.stop, self.show, self.sink = population, list(members), stop, show, sink
        self.plan = plan = population.plans[0]  # the members agree in everything that the loop reads of it
        self.chunk = steps_a_dispatch(plan.variables, plan.spec.steps_per_epoch)
        if plan.dataset.streamed:
            self.chunk = min(self.chunk, MOST_STREAMED_STEPS)
        self.states, self.sums = population.place(carries)
        self.best_states: Any = None  # on the devices until they are written with the next checkpoint
        self.best_is_new = [False] * len(self.members)
        self.failed: dict[int, RunError] = {}  # member -> why it is no longer saved

    @property
    def first(self) -> Member:
        """A member whose progress is that of all."""
        return next(member for i, member in enumerate(self.members) if i not in self.failed)

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end, writes the results and returns them.

        Raises:
          RunError: A loss was not finite; the other members are finished.
        """
        displays = [
            EpochDisplay(member.run.name, member.plan.epochs, member.progress.epoch, self.show)
            for member in self.members
        ]
        try:
            while not self.first.finished:
                for i, row in self._epoch().items():
                    self.members[i].run.append_metrics(row)
                    displays[i].epoch(row)
                    if self.sink:
                        self.sink(str(self.members[i].run.path), row)
                self._save_if_due()
            results = [self._finish(i) for i in range(len(self.members)) if i not in self.failed]
            if self.failed:
                raise next(iter(self.failed.values()))
            return results
        finally:
            for display in displays:
                display.close()
            self.population.close()
            for member in self.members:
                member.run.close()

    def _epoch(self) -> dict[int, dict[str, Any]]:
        """Trains the rest of an epoch, evaluates, and returns each member's row of metrics.jsonl."""
        progress = self.first.progress
        epoch, first, spec = progress.epoch, progress.step_in_epoch, self.plan.spec_at(progress.epoch)
        if epoch == self.plan.config.warmup.epochs and not first:
            self._reset_optimizer()
        for loader in self.population.loaders:
            loader.reset_counts()
        began = time.perf_counter()
        self._train(epoch, first)
        jax.block_until_ready(self.sums)
        seconds = time.perf_counter() - began
        sums, scores = self._fetch_epoch(epoch + 1)
        images = (spec.steps_per_epoch - first) * self.plan.config.batch_size
        rows: dict[int, dict[str, Any]] = {}
        for i, member in self._alive():
            rows[i] = {
                "epoch": epoch + 1,
                "step": (epoch + 1) * spec.steps_per_epoch,
                "learning_rate": _rate(member.plan, epoch),
                "images_per_second": images / max(seconds, 1e-9),
                **self.population.loaders[0 if self.population.shares_batches else i].counts(),
                "train": metrics.means(sums[i].metrics),
                **scores[i],
            }
        self._finish_epoch(scores)
        seconds = (time.perf_counter() - began) / len(self.members)  # a member's share
        return {i: {**row, "seconds": seconds} for i, row in rows.items()}

    def _alive(self) -> Iterator[tuple[int, Member]]:
        """Yields the members whose losses were finite so far."""
        return ((i, member) for i, member in enumerate(self.members) if i not in self.failed)

    def _train(self, epoch: int, first: int) -> None:
        """Makes the updates of an epoch from update `first` on."""
        for start in range(first, self.plan.spec.steps_per_epoch, self.chunk):
            end = min(start + self.chunk, self.plan.spec.steps_per_epoch)
            self._dispatch(epoch, start, end)
            if self.stop.signum and end < self.plan.spec.steps_per_epoch:  # the last one finishes its epoch first
                self._stop(end)

    def _dispatch(self, epoch: int, start: int, end: int) -> None:
        batches = self.population.batches(epoch, start, end - start)
        step = compiled_population(self.population.spec_at(epoch), self.plan.devices)
        self.states, self.sums = step((self.states, self.sums), self.population.fixed, batches)

    def _reset_optimizer(self) -> None:
        """Begins training proper with a fresh optimizer after a warm-up, as it begins without one."""
        if self.plan.warmup is None:
            return
        host = parallel.to_host(self.states)
        fresh = []
        for i, member in enumerate(self.members):
            state = self.population.take(host, i)
            opt_state = train_state.optimizer(traced(member.plan.config), rate=0.0).init(state.trainable)
            fresh.append((dataclasses.replace(state, opt_state=jax.device_get(opt_state)), member.zero_sums))
        self.states, _ = self.population.place(fresh)

    def _fetch_epoch(self, epoch: int) -> tuple[list[Sums], list[Scores]]:
        """Returns each member's sums of the epoch and its scores on the held-out splits, in one fetch.

        Members whose loss was not finite are noted as failed. The sums on the devices are set to zero.
        """
        config, dispatched = self.plan.config, {}
        if not epoch % config.eval_every or epoch == self.plan.epochs:
            splits = [split for split in ("validation", "test") if split in self.plan.dataset.splits]
            dispatched = {split: self.population.score(self.states, split) for split in splits}
        sums, scored = jax.device_get((self.sums, dispatched))
        members = range(len(self.members))
        own = [self.population.take(sums, i) for i in members]
        self._check_finite(own)
        self.sums = self._zero_sums()
        scores = [
            {split: metrics.means(self.population.take(found, i).metrics) for split, found in scored.items()}
            for i in members
        ]
        return own, scores

    def _zero_sums(self) -> Any:
        return self.population.place_all([member.zero_sums for member in self.members])

    def _check_finite(self, sums: Sequence[Sums]) -> None:
        """Notes the members whose loss was not finite, and ends the population if there is no other.

        Raises:
          RunError: No member is left.
        """
        for i, member in list(self._alive()):
            try:
                member.check_finite(sums[i])
            except RunError as error:
                self.failed[i] = error
        if len(self.failed) == len(self.members):
            raise next(iter(self.failed.values()))

    def _finish_epoch(self, scores: Sequence[Scores]) -> None:
        """Counts the epoch for every member and keeps the states that are the best so far."""
        better = [False] * len(self.members)
        for i, member in self._alive():
            better[i] = member.finish_epoch(scores[i])
        if any(better):
            self.best_states = self.population.keep(better, self.states, self.best_states)
            self.best_is_new = [new or now for new, now in zip(self.best_is_new, better, strict=True)]

    def _save_if_due(self) -> None:
        every, member = self.plan.config.checkpoint.every_epochs, self.first
        if self.stop.signum and not member.finished:
            self._stop(0)
        elif member.finished or (every and member.progress.epoch % every == 0):
            self._save(final=member.finished)

    def _save(self, *, final: bool = False) -> None:
        """Writes a checkpoint of every member."""
        states, sums, best = parallel.to_host((self.states, self.sums, self.best_states))
        for i, member in self._alive():
            best_state = self.population.take(best, i) if self.best_is_new[i] else None
            if final:
                member.save_final(self.population.take(states, i), best_state)
            else:
                member.save(self.population.take(states, i), self.population.take(sums, i), best_state)
        if not final:
            self.best_states, self.best_is_new = None, [False] * len(self.members)

    def _finish(self, i: int) -> dict[str, Any]:
        """Writes a member's result and returns it."""
        member, population = self.members[i], self.population

        def score_train(which: str) -> dict[str, float]:
            best = member.progress.best
            if which == "last" or best is None or best.step == member.step:
                variables = population.take(self.states, i).variables
            elif self.best_is_new[i]:
                variables = population.take(self.best_states, i).variables
            else:
                member.run.wait()
                variables = member.run.restore_variables(best.step)[0]
            return member.score(variables, "train")

        return member.finish(score_train)

    def _stop(self, step_in_epoch: int) -> NoReturn:
        """Saves all members and leaves."""
        sums = jax.device_get(self.sums)
        self._check_finite([self.population.take(sums, i) for i in range(len(self.members))])
        for _, member in self._alive():
            member.stop_in_epoch(step_in_epoch)
        self._save()
        for _, member in self._alive():
            member.run.wait()
        runs = [member.run for _, member in self._alive()]
        what = f"run '{runs[0].name}' was" if len(runs) == 1 else f"{len(runs)} runs were"
        self.stop.leave(f"{what} saved at step {self.first.step}; repeat the command to go on from there.")


def _rate(plan: Plan, epoch: int) -> float:
    """Returns the learning rate of the last update of an epoch."""
    spec = plan.spec_at(epoch)
    config = combine(plan.spec.structure, plan.numbers)
    return float(steps.rate(np.int32((epoch + 1) * spec.steps_per_epoch - 1), config, spec))
