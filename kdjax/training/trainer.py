"""Trains the members of a population from their first or their last saved step to their results."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import jax
import numpy as np

from kdjax import models
from kdjax.errors import DivergedError, RunError, UserError
from kdjax.training import metrics, parallel, processes, steps
from kdjax.training import state as train_state
from kdjax.training.averaged_state import averaged
from kdjax.training.compile_time import compile_time
from kdjax.training.display import EpochDisplay
from kdjax.training.member import Member, Scores, initial_carry
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan, traced
from kdjax.training.population import Population, has_convolutions
from kdjax.training.signals import StopSignals
from kdjax.training.state import TrainState
from kdjax.training.structure import combine

MOST_STEPS_A_DISPATCH = 256
MOST_STREAMED_STEPS = 8  # their images, or outputs of teachers, are in memory at once
MOST_ON_CPU = 20  # of convolutional networks, over all members: a signal waits for the end of the dispatch
SAVERS = 8  # runs of a population that are saved at the same time

Sink = Callable[[str, dict], None]  # (path of the run, row of metrics.jsonl)


def steps_a_dispatch(plans: Sequence[Plan]) -> int:
    """Returns how many updates of the members of a population go to the device at once.

    On CPU, a plain convolution's gradient takes 21 times as long in a loop. Where all convolutions have the forms of
    `kdjax.models.convolution`, a loop takes 0.8 to 0.9 of the time of steps one by one; its length then divides the
    epoch, since another length would be compiled as well.
    """
    first = plans[0]
    steps = first.spec.steps_per_epoch
    streamed = first.dataset.streamed or any(teacher.in_batch for teacher in first.spec.teachers)
    most = MOST_STREAMED_STEPS if streamed else MOST_STEPS_A_DISPATCH
    if first.devices[0].platform == "cpu" and any(has_convolutions(plan.variables) for plan in plans):
        most = min(most, MOST_ON_CPU // len(plans)) if all(map(_has_fast_loops, plans)) else 1
        return max(count for count in range(1, max(most, 1) + 1) if steps % count == 0)
    dispatches = math.ceil(steps / most)
    return math.ceil(steps / dispatches)


def _has_fast_loops(plan: Plan) -> bool:
    """Whether all convolutions of the step are known to be fast in a loop on CPU: those of kdjax's own networks are.

    Networks of the user's own may call plain convolutions, and adapters may transpose them.
    """
    model = plan.spec.model
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    own = type(module).__module__.startswith("kdjax.models.")
    return own and not has_convolutions(plan.distiller)


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
        self.plan = population.plans[0]  # the members agree in everything that the loop reads of it
        self.chunk = steps_a_dispatch(population.plans)
        self.states, self.sums = population.place(carries)
        self.best_states: Any = None  # on the devices until they are written with the next checkpoint
        self.best_is_new = [False] * len(self.members)
        self._logged: list[tuple[int, Any]] = []  # (first step, losses of a dispatch), on the devices until written
        self._compared = processes.count() == 1  # whether all processes were seen to have the same parameters
        self.failed: dict[int, RunError] = {}  # member -> why it is no longer saved

    @property
    def first(self) -> Member:
        """A member whose progress is that of all."""
        return next(member for i, member in enumerate(self.members) if i not in self.failed)

    def fit(self) -> dict[str, dict[str, Any]]:
        """Trains to the end, writes the results and returns them by name of the run.

        Members whose loss was not finite have none; `raise_failures` says which these are.

        Raises:
          RunError: No loss was finite.
        """
        with contextlib.ExitStack() as stack:
            for close in (self.population.close, *(member.run.close for member in self.members)):
                stack.callback(close)
            displays = [
                EpochDisplay(member.run.name, member.plan.epochs, member.progress.epoch, self.show)
                for member in self.members
            ]
            for display in displays:
                stack.callback(display.close)
            if self.first.finished:  # a process was killed after the last epoch, perhaps while it deleted checkpoints
                self._save(final=True)
            while not self.first.finished:
                for i, row in self._epoch().items():
                    self.members[i].run.append_metrics(row)
                    displays[i].epoch(row)
                    if self.sink:
                        self.sink(str(self.members[i].run.path), row)
                self._save_if_due()
            return {member.run.name: self._finish(i) for i, member in self._alive()}

    def raise_failures(self) -> None:
        """Raises one error about all members whose loss was not finite, if there are any.

        Raises:
          DivergedError: The message names the runs.
        """
        if self.failed:
            names = [self.members[i].run.name for i in self.failed]
            raise DivergedError(" ".join(map(str, self.failed.values())), names)

    def _epoch(self) -> dict[int, dict[str, Any]]:
        """Trains the rest of an epoch, evaluates, and returns each member's row of metrics.jsonl."""
        progress = self.first.progress
        epoch, first, spec = progress.epoch, progress.step_in_epoch, self.plan.spec_at(progress.epoch)
        if epoch == self.plan.config.warmup.epochs and not first:
            self._reset_optimizer()
        for loader in self.population.loaders:
            loader.reset_counts()
        began = time.perf_counter()
        with compile_time() as compiling:
            self._train(epoch, first)
            jax.block_until_ready(self.sums)
        seconds = time.perf_counter() - began - compiling.seconds
        if epoch + 1 == self.plan.epochs:
            self._use_averages()
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
        step, batches = self.population.compiled(epoch), self.population.batches(epoch, start, end - start)
        try:
            found = step((self.states, self.sums), self.population.fixed, batches)
            self.stop.unsaved = True  # before this, a signal need not wait for the compilation
        except UserError:  # the first call traces the step and finds mistakes in the config of a member
            self._blame(epoch)
            raise
        if self.population.log_every:
            found, losses = found
            self._logged.append((epoch * self.plan.spec.steps_per_epoch + start, losses))
        self.states, self.sums = found
        if not self._compared:
            self._compared = True
            parallel.check_same_everywhere(self.states, f"the parameters after step {self.first.step + end - start}")
        self.stop.ask()

    def _blame(self, epoch: int) -> None:
        """Traces the step of each member of a population alone, so that a mistake is said of the right run.

        Raises:
          UserError: The message names the run.
        """
        for member in self.members if len(self.members) > 1 else ():
            try:
                _trace(member.plan, epoch)
            except UserError as error:
                raise UserError(f"run '{member.run.name}': {error}") from error

    def _use_averages(self) -> None:
        """Replaces the weights by their averages, in the runs that have one."""
        if not any(member.plan.config.average.name for member in self.members):
            return
        host, states = parallel.to_host(self.states), []
        for i, member in enumerate(self.members):
            state = self.population.take(host, i)
            loader = self.population.loaders[0 if self.population.shares_batches else i]
            states.append(averaged(member.plan, state, loader) if member.plan.config.average.name else state)
        self.states = self.population.place_all(states)

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
        self._log_steps()
        members = range(len(self.members))
        own = [self.population.take(sums, i) for i in members]
        self._check_finite(own)
        self.sums = self._zero_sums()
        scores = [
            {split: metrics.means(self.population.take(found, i).metrics) for split, found in scored.items()}
            for i in members
        ]
        return own, scores

    def _log_steps(self) -> None:
        """Writes the losses of the steps since the last call, each `log_every`-th, to the members' steps.jsonl."""
        logged, self._logged = jax.device_get(self._logged), []
        if not logged:
            return
        every = self.population.log_every
        for i, member in self._alive():
            own = [(first, self.population.take_steps(losses, i)) for first, losses in logged]
            member.run.append_steps([row for first, losses in own for row in _step_rows(first, losses, every)])

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
            self.raise_failures()

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

        def save(i: int) -> None:
            member, state = self.members[i], self.population.take(states, i)
            best_state = self.population.take(best, i) if self.best_is_new[i] else None
            if final:
                member.save_final(state, best_state)
            else:
                member.save(state, self.population.take(sums, i), best_state)

        _for_each([i for i, _ in self._alive()], save, [member.run.close for member in self.members])
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
        self._log_steps()
        sums = jax.device_get(self.sums)
        self._check_finite([self.population.take(sums, i) for i in range(len(self.members))])
        for _, member in self._alive():
            member.stop_in_epoch(step_in_epoch)
        self._save()
        for _, member in self._alive():
            member.run.wait()
        runs = [member.run for _, member in self._alive()]
        what = f"run '{runs[0].name}' was" if len(runs) == 1 else f"{len(runs)} runs were"
        failures = "".join(f" {error}" for error in self.failed.values())
        self.stop.leave(f"{what} saved at step {self.first.step}; repeat the command to go on from there.{failures}")


def _for_each(members: Sequence[int], save: Callable[[int], None], closes: Sequence[Callable[[], None]]) -> None:
    """Saves some members: one alone in the background, several at a time with all on disk when this returns.

    A run that is being saved has threads of its own, which several runs must not keep.
    """
    if len(closes) == 1:
        for i in members:
            save(i)
        return

    def save_and_close(i: int) -> None:
        save(i)
        closes[i]()

    # Several processes talk about every save, in the same order.
    with ThreadPoolExecutor(SAVERS if processes.count() == 1 else 1) as pool:
        list(pool.map(save_and_close, members))


def _step_rows(first: int, losses: Mapping[str, Any], every: int) -> Iterator[dict[str, Any]]:
    """Yields the row of each `every`-th update of a dispatch, whose first one is number `first` counted from 0."""
    steps = len(losses["loss"][0])
    for k in range(-(first + 1) % every, steps, every):
        row = {name: (total[k], count[k]) for name, (total, count) in losses.items()}
        yield {"step": first + k + 1, **metrics.means(row)}


def _trace(plan: Plan, epoch: int) -> None:
    """Traces the step that a plan has alone; computes nothing.

    Raises:
      UserError: There is a mistake in the plan.
    """
    population = Population([plan])
    try:
        carry, batches = population.place([initial_carry(plan)]), population.batches(epoch, 0, 1)
        jax.eval_shape(population.compiled(epoch), carry, population.fixed, batches)
    finally:
        population.close()


def _rate(plan: Plan, epoch: int) -> float:
    """Returns the learning rate of the last update of an epoch."""
    spec = plan.spec_at(epoch)
    config = combine(plan.spec.structure, plan.numbers)
    return float(steps.rate(np.int32((epoch + 1) * spec.steps_per_epoch - 1), config, spec))
