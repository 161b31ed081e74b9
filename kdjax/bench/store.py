"""Measures the checkpoints of a finished run, best and last, as orbax writes them and packed: files, bytes and time."""

import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from kdjax import models
from kdjax.bench.results import Table, publish
from kdjax.bench.timing import in_turn, machine
from kdjax.store import Run, Store

NETWORKS = {"MLP 64-512-512-10": (512, 512), "MLP 64-12-10": (12,)}  # the quickstart's teacher and a small student
BEST, LAST = 300, 400  # steps of the two checkpoints
HEADER = (
    "network",
    "checkpoints",
    "files",
    "bytes",
    "bytes / bytes of leaves",
    "milliseconds to write both",
    "to restore the last state",
    "to restore the best variables",
)


def show(flag: flags.FlagValues) -> None:
    """Prints two rows for every network: the median of the rounds, and the fastest in brackets."""
    rows = [row for name, hidden in NETWORKS.items() for row in _rows(name, hidden, flag.rounds)]
    note = f"{machine()}; SGD with momentum, one process, nothing else in the run"
    publish(flag, note, Table(HEADER, rows, keys=2))


def _rows(network: str, hidden: tuple[int, ...], rounds: int) -> list[tuple]:
    state = _state(hidden)
    with tempfile.TemporaryDirectory() as folder:
        store, numbers = Store(folder), itertools.count()
        runs = {name: write(store.run(name), state) for name, write in WRITERS.items()}
        writing = {name: _again(store, write, state, numbers) for name, write in WRITERS.items()}
        restoring = {name: functools.partial(run.restore, state) for name, run in runs.items()}
        reading = {name: functools.partial(run.restore_variables, "best") for name, run in runs.items()}
        times = [in_turn(actions, rounds) for actions in (writing, restoring, reading)]
        stored = {"orbax": [state, state], "packed": [state, _variables(state)]}
        return [
            (network, name, *_size(run, stored[name]), *(_milliseconds(seconds[name]) for seconds in times))
            for name, run in runs.items()
        ]


def _state(hidden: tuple[int, ...]) -> dict[str, Any]:
    """Returns a state as a run saves it: the network, its momentum, and sums for the metrics."""
    module = models.create_model("mlp", 10, hidden=hidden)
    variables = models.init_variables(module, (1, 8, 8, 1), 0)
    momentum = optax.TraceState({"model": variables["params"]})  # not zeros, which orbax would compress to nothing
    train = {"step": np.int32(LAST), "params": variables["params"], "batch_stats": {}, "opt_state": momentum}
    return jax.device_get({"train": train, "sums": [np.float32(0)] * 4})


def _variables(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state["train"][name] for name in ("params", "batch_stats")}


def _write_orbax(run: Run, state: dict[str, Any]) -> Run:
    for step in (BEST, LAST):
        run.save(step, state, {"best": {"step": BEST}}, keep_best=BEST)
    run.close()
    return run


def _write_packed(run: Run, state: dict[str, Any]) -> Run:
    run.save_final(LAST, state, {"best": {"step": BEST}}, best_step=BEST, best_variables=_variables(state))
    return run


WRITERS = {"orbax": _write_orbax, "packed": _write_packed}


def _again(store: Store, write: Callable, state: dict[str, Any], numbers: itertools.count) -> Callable[[], None]:
    """Returns a function that writes a new run each time it is called."""

    def again() -> None:
        write(store.run(f"run{next(numbers)}"), state)

    return again


def _size(run: Run, stored: Any) -> tuple[str, str, str]:
    """Returns the files and bytes of a run, and the bytes relative to those of the leaves that are stored in it."""
    sizes = [path.stat().st_size for path in run.path.rglob("*") if path.is_file()]
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(stored))
    return str(len(sizes)), f"{sum(sizes):,}", f"{sum(sizes) / leaves:.2f}"


def _milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} [{1000 * min(seconds):.1f}]"
