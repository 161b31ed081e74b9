"""How far a run is: the record that is saved with every checkpoint."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The epoch with the highest validation accuracy so far, the earliest of equals.

    Attributes:
      epoch: Number of the epoch, counted from 1.
      step: Updates made by its end.
      accuracy: Validation accuracy after it.
    """

    epoch: int
    step: int
    accuracy: float


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      epoch: Finished epochs.
      step_in_epoch: Updates made in the epoch after them.
      best: The best epoch so far, None before one.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    best: Best | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain mappings."""
        return {**self._asdict(), "best": self.best and self.best._asdict()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Progress":
        """Returns the record that `to_json` turned into plain mappings."""
        best = record["best"]
        return cls(record["epoch"], record["step_in_epoch"], best and Best(**best))
