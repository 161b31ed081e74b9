"""The batches of (epoch, step), whether the images are on the devices already or are read while they work."""

import functools
import time
import types
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from kdjax import randomness
from kdjax.data import Dataset, Order
from kdjax.data.stream import Pixels, train_stream
from kdjax.data.views import names as view_names
from kdjax.training import parallel, processes
from kdjax.training.stored_teachers import OutputReader
from kdjax.types import Batch, Device


class BatchLoader:
    """Loads batches, and counts what an epoch's row of metrics.jsonl reports about them.

    Attributes:
      waited: Seconds spent waiting for images.
      bad: Images that could not be read.
      labelled, unlabelled: Examples loaded.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        view: str,
        devices: Sequence[Device],
        *,
        last: int,
        workers: int = -1,
        outputs: Mapping[str, OutputReader] = types.MappingProxyType({}),
    ):
        """Makes a loader; nothing is read yet.

        Args:
          dataset: Streamed or resident data.
          order: The order of its examples.
          view: The student's view: a stream makes its random crop, and a view that mixes needs partners.
          devices: Devices of this process.
          last: Steps in the whole run.
          workers: Processes that decode images; see `stream.train_stream`.
          outputs: Name of a teacher -> the reader of its outputs, of those that batches bring.
        """
        self.dataset, self.order, self.devices, self.last = dataset, order, tuple(devices), last
        self.view, self.workers, self.outputs = view_names.parse(view), workers, outputs
        self._stream: Generator[Pixels, None, None] | None = None
        self._next = -1
        self._epoch, self._steps = -1, None
        self.reset_counts()

    def reset_counts(self) -> None:
        """Sets the counts to zero."""
        self.waited, self.bad, self.labelled, self.unlabelled = 0.0, 0, 0, 0

    def counts(self) -> dict[str, Any]:
        """Returns the fields that an epoch's row has for partly labelled and for streamed data."""
        found: dict[str, Any] = {}
        if self.unlabelled:
            found["examples"] = {"labelled": self.labelled, "unlabelled": self.unlabelled}
        if self.dataset.streamed:  # each process reads its own part of every batch
            found |= {"waited_for_data": self.waited, "bad_images": sum(processes.gather(self.bad))}
        return found

    def batches(self, epoch: int, start: int, count: int) -> Batch:
        """Returns `count` batches of an epoch from step `start` on; leaves are `[devices, steps, ...]`."""
        index, visit = self._rows(epoch, slice(start, start + count))
        labelled, partner = self.dataset.labelled[index], None
        if self.view.mix:
            partner = self._partners(index, visit)
            labelled = labelled & self.dataset.labelled[partner]
        self.labelled += int(labelled.sum())
        self.unlabelled += int((~labelled).sum())
        good, arrays = np.ones(parallel.own_share(index).shape, bool), {}
        if self.dataset.streamed:
            arrays, good = self._arrays(epoch * self.order.steps + start, index, partner)
        return Batch(
            index=self._split(index),
            epoch=np.full((len(self.devices), count), epoch, np.int32),
            mask=parallel.deal(good, self.devices),
            labelled=self._split(labelled),
            visit=self._split(visit),
            partner=None if partner is None else self._split(partner),
            outputs=self._outputs(index, visit) if self.outputs else None,
            **arrays,
        )

    def _outputs(self, index: np.ndarray, visit: np.ndarray) -> dict[str, np.ndarray]:
        """Returns this process's part of the teachers' outputs for rows and visits [steps, batch]."""
        own = parallel.own_share(index), parallel.own_share(visit)
        return {name: parallel.deal(reader.read(*own), self.devices) for name, reader in self.outputs.items()}

    def close(self) -> None:
        """Ends the processes that read images."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _rows(self, epoch: int, steps: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and visits, [steps, batch] each, of some steps of an epoch."""
        if self._steps is None or self._epoch != epoch:
            self._epoch, self._steps = epoch, self.order.epoch(epoch)
        return self._steps.index[steps], self._steps.visit[steps]

    def _partners(self, index: np.ndarray, visit: np.ndarray) -> np.ndarray:
        """Returns the rows [steps, batch] that the examples are mixed with."""
        train, seed = self.dataset.splits["train"], self.order.seed
        return np.stack([randomness.partners(train, *step, seed) for step in zip(index, visit, strict=True)])

    def _split(self, array: np.ndarray) -> np.ndarray:
        return parallel.split(array, self.devices)

    def _arrays(
        self, first: int, index: np.ndarray, partner: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns this process's part of streamed batches, from step `first` of the run on, and which images are good.

        Args:
          first: Step of the run.
          index: [steps, batch] rows of the whole batches.
          partner: Likewise, the rows that they are mixed with.
        """
        began = time.perf_counter()
        pixels = [self._read(first + i) for i in range(len(index))]
        self.waited += time.perf_counter() - began
        good = np.stack([one.good for one in pixels])
        self.bad += int((~good).sum())
        images = np.stack([one.images for one in pixels])
        groups = [parallel.own_share(rows) for rows in (index, partner) if rows is not None]
        size = good.shape[1]
        parts = {"images": [images[:, i * size : (i + 1) * size] for i in range(len(groups))]}
        parts["labels"] = [self.dataset.labels[rows] for rows in groups]
        if self.dataset.soft is not None:
            parts["soft"] = [self.dataset.soft[rows] for rows in groups]
        # A device gets its own examples and then their partners.
        deal = functools.partial(parallel.deal, devices=self.devices)
        joined = {name: np.concatenate([deal(part) for part in both], axis=2) for name, both in parts.items()}
        return joined, good

    def _read(self, step: int) -> Pixels:
        """Reads the images of a step of the run; a step out of turn starts a new stream."""
        if self._stream is None or step != self._next:
            self.close()
            stream = train_stream(
                self.dataset,
                self.order,
                step,
                self.last,
                smallest=self.view.smallest if self.view.crop == "resized" else 0.0,
                mixes=bool(self.view.mix),
                workers=self.workers,
                shard=(processes.index(), processes.count()),
            )
            self._stream = cast("Generator[Pixels, None, None]", stream)
        self._next = step + 1
        return next(self._stream)
