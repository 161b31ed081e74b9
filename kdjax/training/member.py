"""The bookkeeping of one run while it trains: its progress, its best state, its checkpoints and its result.

The loop owns what is on the devices, for one run or for several that share a step; each of them is a member.
"""

import dataclasses
from typing import Any

import jax
from absl import logging

from kdjax.errors import RunError
from kdjax.store import Run
from kdjax.training import forward, metrics, parallel
from kdjax.training import state as train_state
from kdjax.training.evaluation import evaluate
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan, traced
from kdjax.training.progress import Best, Progress
from kdjax.training.state import TrainState

Scores = dict[str, dict[str, float]]  # split -> metric -> mean


class Member:
    """One run that is trained, and what is remembered of it between two checkpoints.

    Attributes:
      plan: What is trained.
      run: Its folder in the store.
      progress: How far it is.
      zero_sums: The sums of no step, on the host.
    """

    def __init__(self, plan: Plan, run: Run):
        self.plan, self.run, self.progress = plan, run, Progress()
        self.zero_sums = metrics.zero_train_sums(plan.spec, plan.numbers)
        self._best_state: TrainState | None = None  # on the devices until it is written with the next checkpoint

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.progress.epoch * self.plan.spec.steps_per_epoch + self.progress.step_in_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.progress.epoch >= self.plan.epochs

    def restore(self) -> tuple[TrainState, Sums]:
        """Returns the state and the sums of the newest checkpoint, or those before the first step, on the host.

        The rows of metrics.jsonl after that checkpoint are dropped, since their epochs will be trained again.
        """
        leaves, structure = jax.tree.flatten(self.zero_sums)
        saved = {"train": initial_state(self.plan), "sums": leaves}
        if self.run.steps():
            self._warn_of_changed_draws()
            saved, progress, _ = self.run.restore(saved)
            self.progress = Progress.from_json(progress)
        self.run.cut_metrics(self.progress.epoch)
        return saved["train"], jax.tree.unflatten(structure, saved["sums"])

    def _warn_of_changed_draws(self) -> None:
        begun_by = (self.run.manifest or {}).get("randomness", 1)
        plan = self.plan
        if begun_by < 2 and forward.draws_dropout(plan.spec, plan.variables, plan.dataset.input_shape):
            logging.warning(
                "run '%s' was begun with version %d of kdjax's random streams: from here on its dropout draws differ "
                "from those of an unbroken run; to avoid that, train it again under another --run.",
                self.run.name,
                begun_by,
            )

    def finish_epoch(self, scores: Scores, state: TrainState) -> None:
        """Counts an epoch as finished, and keeps a copy of its state if it is the best so far.

        The best epoch is chosen by validation accuracy; the test split decides nothing.

        Args:
          scores: Scores of the held-out splits after the epoch; empty where it was not evaluated.
          state: State after the epoch, on the devices.
        """
        self.progress = self.progress._replace(epoch=self.progress.epoch + 1, step_in_epoch=0)
        config, best = self.plan.config, self.progress.best
        in_warmup = self.progress.epoch <= config.warmup.epochs
        if config.select != "validation" or "validation" not in scores or in_warmup:
            return
        accuracy = scores["validation"]["accuracy"]
        if best is None or accuracy > best.accuracy:
            self.progress = self.progress._replace(best=Best(self.progress.epoch, self.step, accuracy))
            self._best_state = jax.tree.map(jax.numpy.copy, state)  # the state itself is donated to the next step

    def stop_in_epoch(self, steps: int) -> None:
        """Notes that the present epoch was stopped after so many updates."""
        self.progress = self.progress._replace(step_in_epoch=steps)

    def check_finite(self, sums: Sums) -> None:
        """Ends the run if a loss was not finite, before anything is saved.

        Args:
          sums: Sums of the present epoch, on the host.

        Raises:
          RunError: A loss was not finite; the message names the step and the checkpoint that is kept.
        """
        if sums.first_bad_step == metrics.NEVER:
            return
        self.run.wait()
        steps = self.run.steps()
        kept = f"The checkpoint of step {max(steps)} is kept." if steps else "No checkpoint had been written."
        raise RunError(
            f"run '{self.run.name}': the loss was not finite at step {sums.first_bad_step}; lower "
            f"config.optimizer.learning_rate or check the losses. {kept}"
        )

    def save(self, state: TrainState, sums: Sums) -> None:
        """Writes the best state, if it is newer than what is on disk, and then the present one."""
        best = self.progress.best
        keep = best.step if best else None
        if self._best_state is not None and best is not None and keep != self.step:
            at_best = Progress(best.epoch, 0, best)
            self._write(best.step, self._best_state, self.zero_sums, at_best, keep)
        self._write(self.step, state, sums, self.progress, keep)
        self._best_state = None

    def _write(self, step: int, state: TrainState, sums: Sums, progress: Progress, keep: int | None) -> None:
        host = parallel.to_host({"train": state, "sums": jax.tree.leaves(sums)})  # by position: names hold '/'
        self.run.save(step, host, progress.to_json(), keep_best=keep)

    def score(self, state: TrainState, splits: tuple[str, ...]) -> Scores:
        """Evaluates a state on those of the splits that the data has."""
        plan, batch_size = self.plan, self.plan.config.eval_batch_size
        return {
            split: evaluate(plan.spec.model, state.variables, plan.dataset, split, batch_size, plan.devices)
            for split in splits
            if split in plan.dataset.splits
        }

    def finish(self, state: TrainState) -> dict[str, Any]:
        """Scores the last and the best state on every split, writes the result and returns it."""
        splits, best = ("train", "validation", "test"), self.progress.best
        last = {"epoch": self.plan.epochs, "step": self.step, **self.score(state, splits)}
        result: dict[str, Any] = {"last": last}
        if best:
            best_state = state if best.step == self.step else self._restore_best(state, best.step)
            result["best"] = {"epoch": best.epoch, "step": best.step, **self.score(best_state, splits)}
        rows = self.run.metrics()
        if "validation" not in last and "test" in last:
            peak = max(row["test"]["accuracy"] for row in rows if "test" in row)
            note = "chosen on the test split: not to be reported"
            result["max_over_epochs_on_test"] = {"accuracy": peak, "note": note}
        result["seconds"] = sum(row["seconds"] for row in rows)
        self.run.wait()
        self.run.write_result(result)
        return result

    def _restore_best(self, state: TrainState, step: int) -> TrainState:
        self.run.wait()
        variables, _ = self.run.restore_variables(step)
        return dataclasses.replace(state, **parallel.replicate(variables, self.plan.devices))


def initial_state(plan: Plan) -> TrainState:
    """Returns the train state of a plan before the first step."""
    return train_state.create_state(plan.variables, plan.distiller, traced(plan.config))


def initial_carry(plan: Plan) -> tuple[TrainState, Sums]:
    """Returns what a run carries from step to step, before the first one."""
    return initial_state(plan), metrics.zero_train_sums(plan.spec, plan.numbers)
