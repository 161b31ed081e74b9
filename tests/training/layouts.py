"""Runs that tests train on several layouts of processes and devices, and the program that trains them there.

launch/local_processes.sh 2 -- python tests/training/layouts.py --store=DIR --data_dir=FILE --what=teacher,student

--trouble=KIND:PROCESS lets something happen to a process, once for a store: see TROUBLES.
"""

import json
import os
import pathlib
import signal
import sys
import time

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from absl import flags

from kdjax import cli
from kdjax.config import defaults


def _config(data: str, **changed):
    config = defaults()
    config.model.name, config.model.args = "mlp", {"hidden": (8,)}
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.data.name, config.data.args, config.data.validation = "arrays", {"path": data}, 0.25
    config.data.view = "crop_flip"
    config.batch_size = config.eval_batch_size = 8
    config.epochs, config.schedule.milestones = 9, (5,)  # 54 steps
    config.update(changed)
    return config


def _student(data: str, **changed):
    config = _config(data, **changed)
    config.teachers = {"a": {"run": "teacher"}}
    config.losses = {"cross_entropy": {"weight": 1.0}, "wttm": {"weight": 1.0, "gamma": 0.5}}
    return config


def _train(store, name: str, config):
    from kdjax.training.loop import train

    return train(config, store, name=name, show=False)


def teacher(store, data: str):
    return _train(store, "teacher", _config(data))


def student(store, data: str):
    return _train(store, "student", _student(data))


def streamed(store, data: str):
    """A convolutional student with BatchNorm, which reads its images while it trains."""
    from kdjax.training import evaluation

    config = _student(data)
    config.model.name, config.model.args = "four_layers:FourLayers", {}
    room, evaluation.PART_OF_MEMORY = evaluation.PART_OF_MEMORY, 1e-12  # so that the images do not fit
    try:
        return _train(store, "streamed", config)
    finally:
        evaluation.PART_OF_MEMORY = room


def remembering(store, data: str):
    """CRD's memory of embeddings, which all devices must write alike."""
    config = _student(data)
    config.losses.crd = {"weight": 0.5, "dim": 4, "negatives": 16}
    return _train(store, "remembering", config)


def first_step(store, data: str):
    """A run of one step."""
    return _train(store, "first", _config(data, epochs=1, batch_size=48))


def stoppable(store, data: str):
    """A run of 27 dispatches in 9 epochs, which is saved after each epoch."""
    from kdjax.training import trainer

    trainer.MOST_STEPS_A_DISPATCH = 2
    config = _config(data)
    config.checkpoint.every_epochs = 1
    return _train(store, "stoppable", config)


def population(store, data: str):
    """Three students in one step."""
    from kdjax.training.loop import train_together

    configs = [_student(data, seed=seed) for seed in range(3)]
    return train_together(configs, store, names=[f"member{seed}" for seed in range(3)], show=False)


def evaluated(store, data: str):
    """What `evaluate` and `analyze` find out about stored runs."""
    from kdjax.inspection.analyze import analyze
    from kdjax.inspection.predict import score_run
    from kdjax.training.processes import by_writer

    found = analyze(store, ["teacher", "student"], ["fidelity", "calibration"])
    found["scores"] = score_run(store, "student")
    by_writer(lambda: store.write_text("evaluated.json", json.dumps(found, default=str)))


_ALL = (teacher, student, streamed, remembering, first_step, stoppable, population, evaluated)
STAGES = {stage.__name__: stage for stage in _ALL}

# Kind of trouble -> what the process gets, and when: before it joins, in the middle of an epoch, or while it saves.
TROUBLES = {
    "start-up": (signal.SIGKILL, "start-up"),
    "collective": (signal.SIGKILL, "dispatch"),
    "save": (signal.SIGKILL, "save"),
    "freeze": (signal.SIGSTOP, "dispatch"),
    "terminate": (signal.SIGTERM, "dispatch"),
    "interrupt": (signal.SIGINT, "dispatch"),
}
DISPATCH = 11  # in the fourth of nine epochs
SAVE = 3


class Trouble:
    """Sends a signal to one process, or to their launcher, and notes when; later attempts note their first dispatch."""

    def __init__(self, text: str, store: pathlib.Path):
        kind, who = text.split(":")
        self.number, self.moment = TROUBLES[kind]
        self.own = max(cli.FLAGS.process, 0)
        self.target = os.getppid() if who == "launcher" else os.getpid()
        self.is_victim = who == str(self.own) or (who == "launcher" and self.own == 0)
        self.struck, self.resumed = (store.with_name(name) for name in ("struck", "resumed"))
        self.again, self.dispatches, self.saves = self.struck.exists(), 0, 0

    def strike(self, moment: str) -> None:
        """Sends the signal, if it is the moment and the signal was not sent yet."""
        if moment == self.moment and self.is_victim and not self.struck.exists():
            self.struck.write_text(str(time.time()))
            os.kill(self.target, self.number)
            time.sleep(1.5 if self.target != os.getpid() else 0)  # bash obeys between two of its commands

    def install(self) -> None:
        """Has the moments told; called when the processes have joined."""
        from kdjax.training import trainer
        from kdjax.training.shared_store import SharedRun

        dispatch, save = trainer.Trainer._dispatch, SharedRun.save

        def dispatching(own, *args):
            self.dispatches += 1
            if self.dispatches == DISPATCH:
                self.strike("dispatch")
            if self.struck.exists() and not self.again:
                time.sleep(0.15)  # the processes agree on a step while they train
            dispatch(own, *args)
            if self.again and self.own == 0 and self.dispatches == 1:
                self.resumed.write_text(str(time.time()))

        def saving(own, *args, **kwargs):
            self.saves += 1
            if self.saves == SAVE:
                self.strike("save")
            return save(own, *args, **kwargs)

        trainer.Trainer._dispatch, SharedRun.save = dispatching, saving


def _have_trouble() -> None:
    """Lets the trouble that the flag names begin when the processes join."""
    join = cli._join_processes

    def joining() -> None:
        trouble = Trouble(cli.FLAGS.trouble, pathlib.Path(cli.FLAGS.store)) if cli.FLAGS.trouble else None
        if trouble:
            trouble.strike("start-up")
        join()
        if trouble:
            trouble.install()

    cli._join_processes = joining


def main() -> None:
    from kdjax.store import Store

    for name in cli.FLAGS.what:
        STAGES[name](Store(cli.FLAGS.store), cli.FLAGS.data_dir)


if __name__ == "__main__":
    cli.define_common_flags()
    cli.define_process_flags()
    cli.define(flags.DEFINE_list, "what", [], "Names of stages.")
    cli.define(flags.DEFINE_string, "config", "", "None; it makes the processes stoppable.")
    cli.define(flags.DEFINE_string, "trouble", "", "What happens to a process.")
    _have_trouble()
    cli.run(main)
