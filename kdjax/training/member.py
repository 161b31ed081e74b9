"""The bookkeeping of one run while it trains: its progress, its best state, its checkpoints and its result.

The loop owns what is on the devices, for one run or for several that share a step; each of them is a member.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from kdjax.errors import DivergedError, UserError
from kdjax.store import Run
from kdjax.training import forward, metrics, parallel
from kdjax.training import state as train_state
from kdjax.training.device_choice import depends_on_devices
from kdjax.training.evaluation import evaluate
from kdjax.training.manifest import versions
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan, hashes_of, traced
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

        The rows of metrics.jsonl and steps.jsonl after that checkpoint are dropped: their epochs will be trained again.

        Raises:
          UserError: The run was begun with other data, teachers or code, or it has lost its checkpoints or rows.
        """
        self._check_resumable()
        leaves, structure = jax.tree.flatten(self.zero_sums)
        saved = {"train": initial_state(self.plan), "sums": leaves}
        if self.run.steps():
            self._warn_of_changed_draws()
            self._warn_of_other_devices()
            saved, progress, _ = self.run.restore(saved)
            self.progress = Progress.from_json(progress)
        scored = [self.progress.best.epoch] if self.progress.best else []
        scored += [self.progress.epoch] if self.finished else []
        self.run.cut_metrics(self.progress.epoch, needed=scored)
        self.run.cut_steps(self.step)
        return saved["train"], jax.tree.unflatten(structure, saved["sums"])

    def _check_resumable(self) -> None:
        """Refuses to go on with other content than the run was begun with, and warns of another release of jax."""
        manifest = self.run.manifest
        self.run.refuse_without_manifest()
        if manifest is None:
            return
        self.run.check_checkpoints()
        self.run.check_content(hashes_of(self.plan))
        before, now = manifest.get("versions", {}), versions()
        pairs = [(name, before.get(name), now[name]) for name in ("jax", "jaxlib")]
        changed = [f"{name} {old} -> {new}" for name, old, new in pairs if old not in (None, new)]
        if changed:
            logging.warning(
                "run '%s' was begun under another release (%s): it goes on, but its numbers may differ in rounding "
                "from those of an unbroken run.",
                self.run.name,
                ", ".join(changed),
            )

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

    def _warn_of_other_devices(self) -> None:
        before, now = (self.run.manifest or {}).get("devices"), parallel.device_count(self.plan.devices)
        if before not in (None, now) and depends_on_devices(self.plan):
            logging.warning(
                "run '%s' was begun on another number of devices (%d, now %d) and its network has statistics or draws "
                "of each device: it goes on, but not as it would have there; resume it on %d to avoid that.",
                self.run.name,
                before,
                now,
                before,
            )

    def finish_epoch(self, scores: Scores) -> bool:
        """Counts an epoch as finished, and returns whether its state is the best so far.

        The best epoch is chosen on the validation split by `config.select_by`; the test split decides nothing, and an
        epoch whose measure is not finite is never the best.

        Args:
          scores: Scores of the held-out splits after the epoch; empty where it was not evaluated.
        """
        self.progress = self.progress._replace(epoch=self.progress.epoch + 1, step_in_epoch=0)
        config, best = self.plan.config, self.progress.best
        in_warmup = self.progress.epoch <= config.warmup.epochs
        if config.select != "validation" or "validation" not in scores or in_warmup:
            return False
        metric, sign = metrics.SELECTED_BY[config.select_by]
        score = sign * scores["validation"][metric]
        is_best = math.isfinite(score) and (best is None or score > best.score)
        if is_best:
            self.progress = self.progress._replace(best=Best(self.progress.epoch, self.step, score))
        return is_best

    def stop_in_epoch(self, steps: int) -> None:
        """Notes that the present epoch was stopped after so many updates."""
        self.progress = self.progress._replace(step_in_epoch=steps)

    def check_finite(self, sums: Sums) -> None:
        """Ends the run if a loss was not finite, before anything is saved.

        Args:
          sums: Sums of the present epoch, on the host.

        Raises:
          DivergedError: A loss was not finite; the message names the step and the checkpoint that is kept.
        """
        if sums.first_bad_step == metrics.NEVER:
            return
        self.run.wait()
        steps = self.run.steps()
        kept = f"The checkpoint of step {max(steps)} is kept." if steps else "No checkpoint had been written."
        first = not sums.first_bad_step  # before any update, so that no learning rate is to blame
        rate = "lower config.optimizer.learning_rate or check the losses"
        what = "check the losses, the network and the images" if first else rate
        raise DivergedError(
            f"run '{self.run.name}': the loss was not finite at step {sums.first_bad_step}; {what}. {kept}",
            [self.run.name],
        )

    def score(self, variables: Mapping[str, Any], split: str) -> dict[str, float]:
        """Evaluates variables of the member's network on a split of its data."""
        plan = self.plan
        return evaluate(plan.spec.model, variables, plan.dataset, split, plan.config.eval_batch_size, plan.devices)

    def save(self, state: TrainState, sums: Sums, best_state: TrainState | None) -> None:
        """Writes the best state, if it is newer than what is on disk, and then the present one.

        Args:
          state: The present state, on the host.
          sums: The sums of the present epoch, on the host.
          best_state: The best state, on the host; None where the disk has it.
        """
        best = self.progress.best
        keep = best.step if best else None
        if best_state is not None and best is not None and keep != self.step:
            self._write(best.step, best_state, self.zero_sums, Progress(best.epoch, 0, best), keep)
        self._write(self.step, state, sums, self.progress, keep)

    def _write(self, step: int, state: TrainState, sums: Sums, progress: Progress, keep: int | None) -> None:
        saved = {"train": state, "sums": jax.tree.leaves(sums)}  # by position: names hold '/'
        self.run.save(step, saved, progress.to_json(), keep_best=keep)

    def save_final(self, state: TrainState, best_state: TrainState | None) -> None:
        """Writes the last state, and the variables of the best one, as a finished run keeps them.

        Args:
          state: The state after the last epoch, on the host.
          best_state: The best state, on the host; None where the disk has it.
        """
        best, saved = self.progress.best, {"train": state, "sums": jax.tree.leaves(self.zero_sums)}
        best_step = best.step if best else None
        variables = None if best_state is None else best_state.variables
        self.run.save_final(self.step, saved, self.progress.to_json(), best_step=best_step, best_variables=variables)

    def finish(self, score_train: Callable[[str], dict[str, float]]) -> dict[str, Any]:
        """Writes the result and returns it.

        The scores of the last and the best epoch are those of their rows in metrics.jsonl.

        Args:
          score_train: Returns the scores of the 'last' or 'best' state on the training split; called only if
            `config.score_train` asks for them.
        """
        rows, best = self.run.metrics(), self.progress.best
        by_epoch, last = {row["epoch"]: row for row in rows}, {"epoch": self.plan.epochs, "step": self.step}
        for epoch in (self.plan.epochs, *([best.epoch] if best else [])):
            if epoch not in by_epoch:
                raise UserError(
                    f"{self.run.path / 'metrics.jsonl'} lacks the row of epoch {epoch}, which has the scores; "
                    f"train the run again under another --run, or delete {self.run.path}."
                )
        result: dict[str, Any] = {"last": {**last, **self._scores("last", by_epoch[self.plan.epochs], score_train)}}
        if best:
            scores = self._scores("best", by_epoch[best.epoch], score_train)
            result["best"] = {"epoch": best.epoch, "step": best.step, **scores}
        if "validation" not in result["last"] and "test" in result["last"]:
            peak = max(row["test"]["accuracy"] for row in rows if "test" in row)
            note = "chosen on the test split: not to be reported"
            result["max_over_epochs_on_test"] = {"accuracy": peak, "note": note}
        result["seconds"] = sum(row["seconds"] for row in rows)
        self.run.wait()
        self.run.write_result(result)
        return result

    def _scores(self, which: str, row: Mapping[str, Any], score_train: Callable[[str], dict[str, float]]) -> Scores:
        train = {"train": score_train(which)} if self.plan.config.score_train else {}
        return train | {split: row[split] for split in ("validation", "test") if split in row}


def initial_state(plan: Plan) -> TrainState:
    """Returns the train state of a plan before the first step, on the host."""
    return jax.device_get(train_state.create_state(plan.variables, plan.distiller, traced(plan.config)))


def initial_carry(plan: Plan) -> tuple[TrainState, Sums]:
    """Returns what a run carries from step to step, before the first one."""
    return initial_state(plan), metrics.zero_train_sums(plan.spec, plan.numbers)
