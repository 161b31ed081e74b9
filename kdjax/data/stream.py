"""Batches of images read while the device works, by grain: random access, in worker processes where images are decoded.

The order is `sampler.Order`'s; grain never shuffles. What a batch holds is a function of (config, seed, epoch, step).
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kdjax import randomness
from kdjax.data.dataset import Dataset
from kdjax.data.encoded import Encoded, decode
from kdjax.data.sampler import Order, Steps
from kdjax.data.views import boxes
from kdjax.errors import UserError

AHEAD = 4  # batches that are read before they are asked for
MAX_WORKERS = 8


class Pixels(NamedTuple):
    """The images of a batch.

    Attributes:
      images: [batch, ...] in the stored type; followed by the partners' where a view mixes.
      good: [batch] bool, False where an image could not be read and another stands in its place.
    """

    images: np.ndarray
    good: np.ndarray


class Crop(NamedTuple):
    """How a worker makes images of many sizes alike, as the papers do for ImageNet.

    Attributes:
      size: side of the result.
      kernel: 'bicubic' or 'bilinear'.
      smallest: part of the image that a random crop has at least; 0 for the middle of the image.
    """

    size: int
    kernel: str
    smallest: float


class Reader(NamedTuple):
    """What reads images by row; picklable.

    Attributes:
      images: in the stored type, or encoded.
      crop: of encoded images of many sizes, None where they are read as they are.
      skip_bad: whether an image that cannot be read is skipped and counted instead of ending the run.
    """

    images: Any
    crop: Crop | None
    skip_bad: bool

    def read(self, rows: np.ndarray, visit: np.ndarray | None = None, seed: int = 0) -> Pixels:
        """Reads a batch.

        Args:
          rows: [batch] of the images.
          visit: [batch] that with the seed keys random crops; None for the middle.
          seed: of the run.
        """
        if not isinstance(self.images, Encoded):
            return Pixels(np.asarray(self.images[rows]), np.ones(len(rows), bool))
        words = None
        if self.crop and self.crop.smallest and visit is not None:
            words = randomness.bits(rows, visit, seed, "resized", boxes.WORDS)
        images, good = [None] * len(rows), np.ones(len(rows), bool)
        for i, row in enumerate(rows):
            try:
                images[i] = self._one(int(row), None if words is None else words[i : i + 1])
            except UserError:
                if not self.skip_bad:
                    raise
                good[i] = False
        return Pixels(_stacked(images, good), good)

    def _one(self, row: int, words: np.ndarray | None) -> np.ndarray:
        from PIL import Image

        image = decode(self.images, row)
        if self.crop:
            width, height = image.size
            if words is None:
                top, left, tall, wide = boxes.middle_box(height, width)
            else:
                top, left, tall, wide = (
                    int(part[0]) for part in boxes.resized_box(words, self.crop.smallest, height, width)
                )
            filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
            # Cut first: a filter then reads nothing outside the box, as torchvision does it.
            cut = image.crop((left, top, left + wide, top + tall))
            image = cut.resize((self.crop.size, self.crop.size), filters[self.crop.kernel])
        values = np.asarray(image)
        return values.reshape(*values.shape[:2], self.images.channels)


def _stacked(images: list, good: np.ndarray) -> np.ndarray:
    """Stacks images; where one is missing, a good one stands in, so that batch statistics see no black image."""
    if not good.any():
        raise UserError("no image of a whole batch could be read; is config.data.name right?")
    stand_in = images[int(np.argmax(good))]
    for image in images:
        if image is not None and image.shape != stand_in.shape:
            a, b = ("x".join(str(side) for side in one.shape) for one in (stand_in, image))
            raise UserError(f"images differ in size or channels, {a} and {b}: set config.data.size.")
    return np.stack([stand_in if image is None else image for image in images])


class _ReadStep:
    """Step number -> arrays of its batch; what grain maps over step numbers, in worker processes too."""

    def __init__(self, reader: Reader, order: Order, train: np.ndarray, mixes: bool, shard: tuple[int, int]):
        self.reader, self.order, self.train, self.mixes, self.shard = reader, order, train, mixes, shard
        self.epochs: dict[int, Steps] = {}  # the last two, which threads on either side of a boundary read

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        epoch, step = divmod(int(number), self.order.steps)
        steps = self.epochs.get(epoch)
        if steps is None:
            steps = self.epochs[epoch] = self.order.epoch(epoch)
            self.epochs.pop(epoch - 2, None)
        index, visit = (share_of(part[step], self.shard) for part in steps)
        rows = index
        if self.mixes:
            rows = np.concatenate([index, randomness.partners(self.train, index, visit, self.order.seed)])
        pixels = self.reader.read(rows, np.resize(visit, len(rows)), self.order.seed)
        good = pixels.good.reshape(-1, len(index)).all(axis=0)
        return {"images": pixels.images, "good": good}


def share_of(batch: np.ndarray, shard: tuple[int, int]) -> np.ndarray:
    """Returns the part of a batch [batch, ...] that a process reads; `shard` is its number and how many there are."""
    number, count = shard
    size = len(batch) // count
    return batch[number * size : (number + 1) * size]


def train_stream(
    dataset: Dataset,
    order: Order,
    first: int,
    last: int,
    *,
    smallest: float,
    mixes: bool,
    workers: int = -1,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Pixels]:
    """Yields the images of steps [first, last), counted over all epochs, in order.

    Args:
      dataset: whose images are read.
      order: of its examples.
      first: step to begin with: a stream that was stopped goes on to the example.
      last: step to end before.
      smallest: part of an image that a random resized crop has at least, 0 where the view has none.
      mixes: whether the view mixes each example with a partner.
      workers: processes that decode; 0 for threads of this one; -1 for as many as the machine suggests.
      shard: (number of this process, how many there are); each reads its part of every batch.
    """
    reader = make_reader(dataset, smallest)
    step = _ReadStep(reader, order, dataset.splits["train"], mixes, shard)
    for arrays in _grain(step, first, last, _workers(workers, dataset)):
        yield Pixels(arrays["images"], arrays["good"])


def eval_stream(dataset: Dataset, index: np.ndarray, *, workers: int = 0) -> Iterator[Pixels]:
    """Yields the images of [steps, batch] rows, never cropped at random."""
    reader = make_reader(dataset, 0.0)
    for arrays in _grain(_ReadRows(reader, index), 0, len(index), workers):
        yield Pixels(arrays["images"], arrays["good"])


class _ReadRows(NamedTuple):
    reader: Reader
    index: np.ndarray

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return self.reader.read(self.index[int(number)])._asdict()


def make_reader(dataset: Dataset, smallest: float) -> Reader:
    """Returns what reads a data set's images; `smallest` as in `train_stream`."""
    stored = dataset.stored
    crop = Crop(stored.size, stored.kernel, smallest) if stored.cropped else None
    return Reader(dataset.images, crop, dataset.skip_bad)


def _workers(asked: int, dataset: Dataset) -> int:
    """As many processes as there is decoding to share out; arrays are read by threads alone."""
    if asked >= 0:
        return asked
    return min((os.cpu_count() or 1) // 2, MAX_WORKERS) if isinstance(dataset.images, Encoded) else 0


def _grain(read: Any, first: int, last: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its own flags, which a notebook never parses
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(first, last).map(read)
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=AHEAD))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(options)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()
