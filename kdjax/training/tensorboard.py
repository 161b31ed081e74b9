"""An optional sink for metrics: TensorBoard files beside the run's own."""

from collections.abc import Callable
from typing import Any

from kdjax.errors import UserError


def make_sink() -> Callable[[str, dict], None]:
    """Returns `sink(path, row)`, which writes a row of metrics.jsonl as scalars under `<path>/tensorboard`.

    Raises:
      UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX: pip install 'kdjax[tensorboard]'.") from error
    writers: dict[str, Any] = {}

    def sink(path: str, row: dict) -> None:
        writer = writers.get(path) or SummaryWriter(f"{path}/tensorboard")
        writers[path] = writer
        for name, value in row.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for metric, scalar in scalars.items():
                writer.add_scalar(f"{name}/{metric}".rstrip("/"), scalar, row["epoch"])
        writer.flush()

    return sink
