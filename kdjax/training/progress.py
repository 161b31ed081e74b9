"""How far a run is: the record that is saved with every checkpoint."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The best epoch so far on the validation split, the earliest of equals.

    Attributes:
      epoch: Number of the epoch, counted from 1.
      step: Updates made by its end.
      score: What it was selected by, of which the highest is the best: the validation accuracy, or minus a loss.
    """

    epoch: int
    step: int
    score: float


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
        if best:  # earlier versions of kdjax selected by accuracy alone and called it so
            best = Best(best["epoch"], best["step"], best["score"] if "score" in best else best["accuracy"])
        return cls(record["epoch"], record["step_in_epoch"], best or None)
