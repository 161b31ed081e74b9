"""The accuracy that a paper reports for a run, and where that number comes from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kdjax.config import printed


class Published(NamedTuple):
    """A published accuracy with its provenance; '' and 0 stand for what the config does not say.

    Attributes:
      accuracy: Test accuracy in %.
      source: Paper that reports it.
      selection: Epoch that it was measured at: 'last epoch' or 'best epoch', the best one on the test set.
      epochs: Number of epochs of the training.
      view: View of the training images.
      runs: Number of runs of which it is the mean.
      protocol: All of this in words, in the stores of older versions of kdjax.
      unlike: What of the run differs from what the number was measured with, as 'epochs 1 instead of 240'.
    """

    accuracy: float
    source: str = ""
    selection: str = ""
    epochs: int = 0
    view: str = ""
    runs: int = 0
    protocol: str = ""
    unlike: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Source and epoch, such as 'Zheng & Yang 2024, best epoch of 240'; '' if neither is known."""
        total = f" of {self.epochs}" if self.epochs else ""
        epoch = f"{self.selection}{total}" if self.selection else self.protocol
        if self.source and not epoch:
            epoch = f"epoch{total} not stated"
        return ", ".join(filter(None, (self.source, epoch)))

    @property
    def provenance(self) -> str:
        """The origin, the view and the number of runs."""
        runs = "" if not self.runs else "one run" if self.runs == 1 else f"mean of {self.runs} runs"
        return ", ".join(filter(None, (self.origin, self.view and f"view {self.view}", runs)))


def published_number(
    published: Mapping, teachers: Iterable[Sequence[str]], unlike: Iterable[str] = ()
) -> Published | None:
    """Returns the published accuracy of a run, or None if there is none for teachers like the run's.

    Args:
      published: `config.published` of the run.
      teachers: Names of the losses of each teacher, as `kdjax.config.printed` takes them.
      unlike: What of the run differs from what the number was measured with.
    """
    accuracy = printed(published, teachers)
    if accuracy is None:
        return None
    given = {field: published[field] for field in Published._fields[1:-1] if published.get(field)}
    return Published(accuracy, **given, unlike=tuple(unlike))
