"""Reads batches of images with grain while the device works; encoded images are decoded in worker processes.

The order of the examples comes from `sampler.Order`, and grain never shuffles, so that a batch is a function of
(config, seed, epoch, step).
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kdjax import randomness
from kdjax.data.dataset import Dataset
from kdjax.data.encoded import Encoded, decode
from kdjax.data.sampler import Order, Steps
from kdjax.data.views import crop_boxes
from kdjax.errors import UserError

AHEAD = 4  # number of batches that are read in advance
MAX_WORKERS = 8  # largest number of worker processes if the config does not say one


class Pixels(NamedTuple):
    """The images of a batch.

    Attributes:
      images: Images [batch, ...] in the stored type. If the view mixes examples, those of the partners follow.
      good: bool [batch], False for an image that could not be read and was replaced with another one.
    """

    images: np.ndarray
    good: np.ndarray


class Crop(NamedTuple):
    """Crops and resizes images of different sizes to one size, as is usual for ImageNet.

    Attributes:
      size: Side of the result in pixels.
      kernel: Filter of resizing, 'bicubic' or 'bilinear'.
      smallest: Smallest fraction of the image's area in a random crop; 0 for the central crop.
    """

    size: int
    kernel: str
    smallest: float


class Reader(NamedTuple):
    """Reads images by row; picklable.

    Attributes:
      images: Array of images in the stored type, or encoded images.
      crop: Crop for encoded images of different sizes; None if images are not cropped.
      skip_bad: Whether an image that cannot be read is skipped and counted. Otherwise it ends the run.
    """

    images: Any
    crop: Crop | None
    skip_bad: bool

    def read(self, rows: np.ndarray, visit: np.ndarray | None = None, seed: int = 0) -> Pixels:
        """Reads a batch of images.

        Args:
          rows: Row of each image, [batch].
          visit: Number of times that each example was used before, [batch]: a part of the random key of its crop. None
            for central crops.
          seed: Seed of the run.

        Raises:
          UserError: An image cannot be read and must not be skipped, or none of the batch can be read.
        """
        if not isinstance(self.images, Encoded):
            return Pixels(np.asarray(self.images[rows]), np.ones(len(rows), bool))
        words = None
        if self.crop and self.crop.smallest and visit is not None:
            words = randomness.bits(rows, visit, seed, "resized", crop_boxes.WORDS)
        images: list[np.ndarray | None] = [None] * len(rows)
        good = np.ones(len(rows), bool)
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
                top, left, tall, wide = crop_boxes.middle_box(height, width)
            else:
                top, left, tall, wide = (
                    int(part[0]) for part in crop_boxes.resized_box(words, self.crop.smallest, height, width)
                )
            filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
            # Crop before resizing, as torchvision does, so that the filter reads no pixel outside the box.
            cut = image.crop((left, top, left + wide, top + tall))
            image = cut.resize((self.crop.size, self.crop.size), filters[self.crop.kernel])
        values = np.asarray(image)
        return values.reshape(*values.shape[:2], self.images.channels)


def _stacked(images: list, good: np.ndarray) -> np.ndarray:
    """Stacks images; a missing image is replaced with a good one, so that batch statistics contain no black images."""
    if not good.any():
        raise UserError("no image of a whole batch could be read; check config.data.name.")
    stand_in = images[int(np.argmax(good))]
    for image in images:
        if image is not None and image.shape != stand_in.shape:
            a, b = ("x".join(str(side) for side in one.shape) for one in (stand_in, image))
            raise UserError(f"images differ in size or channels ({a} and {b}); set config.data.size.")
    return np.stack([stand_in if image is None else image for image in images])


class _ReadStep:
    """Function from the number of a step to the arrays of its batch, which grain calls, also in worker processes."""

    def __init__(self, reader: Reader, order: Order, train: np.ndarray, mixes: bool, shard: tuple[int, int]):
        self.reader, self.order, self.train, self.mixes, self.shard = reader, order, train, mixes, shard
        self.epochs: dict[int, Steps] = {}  # the last two epochs, since threads may be on both sides of a boundary

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
    """Returns the part of a batch [batch, ...] that one process reads.

    Args:
      batch: Array of a whole batch.
      shard: (number of the process, number of processes).
    """
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
    """Yields the images of the steps first, ..., last - 1, in order. Steps are counted over all epochs.

    Args:
      dataset: Data set to read.
      order: Order of its training examples.
      first: First step. A resumed run continues at exactly the example at which it stopped.
      last: Step before which the stream ends.
      smallest: Smallest fraction of an image's area in a random resized crop; 0 if the view has no such crop.
      mixes: Whether the view mixes each example with a partner.
      workers: Number of processes that decode images; 0 for threads of this process; -1 to choose for this machine.
      shard: (number of this process, number of processes); each process reads its part of every batch.
    """
    reader = make_reader(dataset, smallest)
    step = _ReadStep(reader, order, dataset.splits["train"], mixes, shard)
    for arrays in _grain(step, first, last, _workers(workers, dataset)):
        yield Pixels(arrays["images"], arrays["good"])


def eval_stream(dataset: Dataset, index: np.ndarray, *, workers: int = 0) -> Iterator[Pixels]:
    """Yields the images of rows [steps, batch], cropped centrally if at all."""
    reader = make_reader(dataset, 0.0)
    for arrays in _grain(_ReadRows(reader, index), 0, len(index), workers):
        yield Pixels(arrays["images"], arrays["good"])


class _ReadRows(NamedTuple):
    reader: Reader
    index: np.ndarray

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return self.reader.read(self.index[int(number)])._asdict()


def make_reader(dataset: Dataset, smallest: float) -> Reader:
    """Returns the reader of a data set's images.

    Args:
      dataset: Data set to read.
      smallest: Smallest fraction of an image's area in a random resized crop; 0 for central crops.
    """
    stored = dataset.stored
    crop = Crop(stored.size, stored.kernel, smallest) if stored.cropped else None
    return Reader(dataset.images, crop, dataset.skip_bad)


def _workers(asked: int, dataset: Dataset) -> int:
    """Returns the number of worker processes: none for arrays, which need no decoding."""
    if asked >= 0:
        return asked
    return min((os.cpu_count() or 1) // 2, MAX_WORKERS) if isinstance(dataset.images, Encoded) else 0


def _grain(read: Any, first: int, last: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, which nothing parses in a notebook
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
