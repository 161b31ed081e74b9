"""What a user sees while a run trains: a progress bar on a terminal, otherwise one line for each epoch."""

import sys
from collections.abc import Mapping
from typing import Any


class EpochDisplay:
    """Shows the epochs of a run as they finish."""

    def __init__(self, name: str, epochs: int, done: int, show: bool = True):
        """Opens the display.

        Args:
          name: Name of the run.
          epochs: Epochs of the whole run.
          done: Epochs that are already finished.
          show: False shows nothing, for programs that train many runs.
        """
        self._name, self._epochs, self._show = name, epochs, show
        self._bar = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=epochs, initial=done, desc=name, unit="epoch", dynamic_ncols=True)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Shows one row of metrics.jsonl, in which 'epoch' counts from 1."""
        if self._bar is not None:
            self._bar.set_postfix_str(_summary(row))
            self._bar.update(row["epoch"] - self._bar.n)
        elif self._show:
            print(f"{self._name} epoch {row['epoch']}/{self._epochs} {_summary(row)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the progress bar."""
        if self._bar is not None:
            self._bar.close()


def _summary(row: Mapping[str, Any]) -> str:
    held_out = [f"{split} {row[split]['accuracy']:.2%}" for split in ("validation", "test") if split in row]
    shown = [f"training loss {row['train']['loss']:.4g}", f"train {row['train']['accuracy']:.2%}", *held_out]
    if "examples" in row:
        shown.append("labelled {labelled} unlabelled {unlabelled}".format(**row["examples"]))
    shown.append(f"{row['images_per_second']:.0f} images/s")
    if "waited_for_data" in row:
        shown.append(f"waited {row['waited_for_data']:.1f} s for data")
    if row.get("bad_images"):
        shown.append(f"{row['bad_images']} bad images")
    return " ".join(shown)
