"""The batches of (epoch, step), wherever the images are: on the devices already, or read while they work."""

import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from kdjax import randomness
from kdjax.data import Dataset, Order
from kdjax.data.stream import Pixels, train_stream
from kdjax.data.views import names as view_names
from kdjax.training import parallel
from kdjax.types import Batch


class Feed:
    """Hands out batches and counts what an epoch's line tells of them.

    Attributes:
      waited: seconds spent waiting for images.
      bad: images that could not be read.
      labelled, unlabelled: examples handed out.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        view: str,
        devices: Sequence[jax.Device],
        *,
        last: int,
        workers: int = -1,
    ):
        """Reads nothing yet.

        Args:
          dataset: streamed or resident.
          order: of its examples.
          view: of the student, whose random crop a stream makes, or whose mix partners are for.
          devices: of this process.
          last: steps in the whole run.
          workers: as in `stream.train_stream`.
        """
        self.dataset, self.order, self.devices, self.last = dataset, order, tuple(devices), last
        self.view, self.workers = view_names.parse(view), workers
        self._stream: Iterator[Pixels] | None = None
        self._next = -1
        self._epoch = (-1, None)
        self.forget()

    def forget(self) -> None:
        """Sets the counts to zero."""
        self.waited, self.bad, self.labelled, self.unlabelled = 0.0, 0, 0, 0

    def batches(self, epoch: int, start: int, count: int) -> Batch:
        """Returns `count` batches from step `start` of an epoch on: leaves `[devices, steps, ...]`."""
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.order.epoch(epoch)
        index, visit = (part[start : start + count] for part in self._epoch[1])
        labelled, partner = self.dataset.labelled[index], None
        if self.view.mix:
            rows = self.dataset.splits["train"]
            partner = np.stack(
                [randomness.partners(rows, *step, self.order.seed) for step in zip(index, visit, strict=True)]
            )
            labelled = labelled & self.dataset.labelled[partner]
        self.labelled += int(labelled.sum())
        self.unlabelled += int((~labelled).sum())
        good, arrays = np.ones(index.shape, bool), {}
        if self.dataset.streamed:
            arrays, good = self._arrays(epoch * self.order.steps + start, index, partner)
        return Batch(
            index=self._split(index),
            epoch=np.full((len(self.devices), count), epoch, np.int32),
            mask=self._split(good),
            labelled=self._split(labelled),
            visit=self._split(visit),
            partner=None if partner is None else self._split(partner),
            **arrays,
        )

    def close(self) -> None:
        """Ends the processes that read."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _split(self, array: np.ndarray) -> np.ndarray:
        return parallel.split(array, self.devices)

    def _arrays(self, first: int, index: np.ndarray, partner: np.ndarray | None) -> tuple[dict, np.ndarray]:
        """What a resident set has on the devices, for the batches from step `first` of the run on."""
        began = time.perf_counter()
        pixels = [self._read(first + i) for i in range(len(index))]
        self.waited += time.perf_counter() - began
        good = np.stack([one.good for one in pixels])
        self.bad += int((~good).sum())
        images, groups = np.stack([one.images for one in pixels]), [index]
        if partner is not None:
            groups.append(partner)
        size = index.shape[1]
        parts = {"images": [images[:, i * size : (i + 1) * size] for i in range(len(groups))]}
        parts["labels"] = [self.dataset.labels[rows] for rows in groups]
        if self.dataset.soft is not None:
            parts["soft"] = [self.dataset.soft[rows] for rows in groups]
        # A device gets its own examples and then their partners.
        joined = {name: np.concatenate([self._split(part) for part in both], axis=2) for name, both in parts.items()}
        return joined, good

    def _read(self, step: int) -> Pixels:
        if self._stream is None or step != self._next:
            self.close()
            self._stream = train_stream(
                self.dataset,
                self.order,
                step,
                self.last,
                smallest=self.view.smallest if self.view.crop == "resized" else 0.0,
                mixes=bool(self.view.mix),
                workers=self.workers,
            )
        self._next = step + 1
        return next(self._stream)
