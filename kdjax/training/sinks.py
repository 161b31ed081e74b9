"""Optional sinks for metrics: programs elsewhere that get each row of a run's metrics.jsonl."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from kdjax.errors import UserError

Sink = Callable[[str, dict], None]  # (the run's path, a row)

PROJECT = "kdjax"  # of wandb, unless WANDB_PROJECT names another one


def make_sink(names: Collection[str]) -> Sink | None:
    """Returns one sink that hands each row to several, None for no name.

    Args:
      names: Names in SINKS.

    Raises:
      UserError: The package that a sink needs is not installed.
    """
    sinks = [SINKS[name]() for name in names]

    def to_all(path: str, row: dict) -> None:
        for sink in sinks:
            sink(path, row)

    return to_all if sinks else None


def tensorboard() -> Sink:
    """Returns a sink that writes a row as scalars under `<path>/tensorboard`.

    Raises:
      UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install 'kdjax[tensorboard]'.") from error
    writers: dict[str, Any] = {}

    def sink(path: str, row: dict) -> None:
        if path not in writers:
            writers[path] = SummaryWriter(f"{path}/tensorboard")
        for name, value in _scalars(row):
            writers[path].add_scalar(name, value, row["epoch"])
        writers[path].flush()

    return sink


def wandb() -> Sink:
    """Returns a sink that logs a row to a run of Weights & Biases, which has the name of the run's folder.

    The environment variables of wandb apply: with WANDB_MODE=offline all files stay in `<path>/wandb`, for
    `wandb sync`, and WANDB_PROJECT names the project. A run that is resumed is the same run there.

    Raises:
      UserError: wandb is not installed.
    """
    try:
        import wandb as library
    except ImportError as error:
        raise UserError("--wandb needs wandb: pip install 'kdjax[wandb]'.") from error
    runs: dict[str, Any] = {}

    def sink(path: str, row: dict) -> None:
        if path not in runs:
            runs[path] = library.init(**_wandb_options(pathlib.Path(path)))
        runs[path].log(dict(_scalars(row)), step=row["epoch"])

    return sink


SINKS: dict[str, Callable[[], Sink]] = {"tensorboard": tensorboard, "wandb": wandb}


def _wandb_options(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `wandb.init` is told of the run in a folder."""
    own = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]  # the same when the run is resumed
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    # 'create_new' lets the members of a population, whose rows come in turn, have a run each.
    return {"project": project, "name": path.name, "id": own, "dir": path, "resume": "allow", "reinit": "create_new"}


def _scalars(row: dict) -> Iterator[tuple[str, float]]:
    """Yields name -> value of all numbers in a row, such as 'test/accuracy'."""
    for name, value in row.items():
        scalars = value if isinstance(value, dict) else {"": value}
        for metric, scalar in scalars.items():
            yield f"{name}/{metric}".rstrip("/"), scalar
