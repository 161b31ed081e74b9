"""Runs a study in one process after another, each stopped at a place where none was stopped before, until one ends.

Command: python tests/studies/killed.py CONFIG STORE SIGNAL[,SIGNAL...]

The signals are used in turn; '' stands for none. Prints a JSON list with an entry per process: where it was stopped,
its exit code, and its last line of output. The processes are forks of this one, which has imported everything and
never uses a device.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import tempfile
import warnings

from kdjax.reporting import figures
from kdjax.store import Run, Store
from kdjax.studies import generations
from kdjax.training import trainer

# Functions after whose return a process may be stopped -> the name of such a place, from the function's arguments.
PLACES = {
    (Run, "begin"): lambda run, *_: run.name,
    (trainer.Trainer, "_dispatch"): lambda own, epoch, start, end: f"{own.first.run.name} {epoch} {start}",
    (Run, "append_metrics"): lambda run, row: f"{run.name} {row['epoch']}",
    (Run, "save"): lambda run, step, *_, **__: f"{run.name} {step}",
    (Run, "write_result"): lambda run, result: run.name,
    (generations, "predict_run"): lambda store, run, *_, **__: run,
    (generations, "probe"): lambda store, run, *_: run,
    (figures, "write_atomic"): lambda path, *_: path.name,
    (Store, "write_text"): lambda store, name, text: name,
}
MOST_PROCESSES = 60


def stop_at_new_places(reached: pathlib.Path, signals: list[int]) -> None:
    """Makes this process send itself a signal at the first place that is not in the file `reached`, and adds it."""
    before = reached.read_text().splitlines()

    def stop_at(place: str) -> None:
        if signals and place not in before and reached.read_text().splitlines() == before:  # one signal a process
            reached.write_text("".join(f"{line}\n" for line in [*before, place]))
            os.kill(os.getpid(), signals[len(before) % len(signals)])

    for (owner, name), describe in PLACES.items():
        setattr(owner, name, _stopping(getattr(owner, name), f"{name} ", describe, stop_at))


def _stopping(function, name, describe, stop_at):
    def stopping(*args, **kwargs):
        result = function(*args, **kwargs)
        stop_at(name + describe(*args, **kwargs))
        return result

    return stopping


def one_process(command: list[str], reached: pathlib.Path, signals: list[int]) -> list:
    """Runs the command in a fork and returns where it was stopped, its exit code, and its last line."""
    before = reached.read_text().splitlines()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            stop_at_new_places(reached, signals)
            os._exit(door(command))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        lines = said.read().decode().splitlines()
    return [reached.read_text().splitlines()[len(before) :], status, lines[-1:]]


def door(command: list[str]) -> int:
    """Runs the command in this process and returns its exit code."""
    code, sys.argv = 1, command
    try:
        runpy.run_module("kdjax.train_generations", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def main() -> None:
    """Runs processes until one ends on its own."""
    config, store, names = sys.argv[1:]
    warnings.filterwarnings("ignore", message=".*fork")  # no thread has been started yet
    signals = [getattr(signal, name) for name in names.split(",") if name]
    trainer.MOST_STEPS_A_DISPATCH = 2  # so that a process may also be stopped inside an epoch
    ended = []
    with tempfile.TemporaryDirectory() as folder:
        reached = pathlib.Path(folder, "reached")
        reached.touch()
        while not (ended and not ended[-1][0]) and len(ended) < MOST_PROCESSES:
            command = ["train_generations.py", f"--config={config}", f"--store={store}"]
            ended.append(one_process(command, reached, signals))
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
