"""An optional sink for metrics: a run of Weights & Biases for each run of the store."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from kdjax.errors import UserError

PROJECT = "kdjax"


def make_sink() -> Callable[[str, dict], None]:
    """Returns `sink(path, row)`, which logs a row of metrics.jsonl to a run of wandb with the run's own name.

    wandb reads its environment variables: WANDB_MODE=offline keeps everything under `<path>/wandb` for `wandb sync`,
    and WANDB_PROJECT names the project, which is 'kdjax' by default. A run that is resumed here goes on there.

    Raises:
      UserError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs wandb: pip install 'kdjax[wandb]'.") from error
    runs: dict[str, Any] = {}

    def sink(path: str, row: dict) -> None:
        if path not in runs:
            runs[path] = wandb.init(**_options(pathlib.Path(path)))
        runs[path].log(dict(_scalars(row)), step=row["epoch"])

    return sink


def _options(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `wandb.init` is told of the run in a folder."""
    import hashlib

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
