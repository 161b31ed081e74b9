"""Measures views on the device, and streams that read arrays, small files and photographs."""

import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from kdjax.bench.results import Table, publish
from kdjax.bench.step import compiled_step, fresh_teacher
from kdjax.bench.timing import in_turn, machine
from kdjax.data import Dataset, Stored, make_order
from kdjax.data.encoded import Files
from kdjax.data.stream import train_stream
from kdjax.data.views import augment
from kdjax.data.views import names as view_names
from kdjax.training.plan import plan_with, resolve

BATCH, SIZE, CLASSES = 64, 32, 10
SHOWN = (
    *("none", "crop_flip", "crop_flip+cutout:16", "flip+rotate:15", "rrc_flip", "rrc_flip_rotate"),
    *("crop_flip+jitter", "crop_flip+autoaugment", "autoaugment_cifar10", "crop_flip+randaugment:2,10"),
    *("crop_flip+mixup:1", "crop_flip+cutmix:1"),
)

VIEW_HEADER = ("view of 64 images of 32x32", "milliseconds per batch", "images per second", "share of a train step")
STREAM_HEADER = ("stream", "processes", "images per second")


def show(flag: flags.FlagValues) -> None:
    """Prints the tables that the command's flags ask for. Views are compared with a train step of the config."""
    views = tuple(flag.only) or SHOWN
    publish(flag, machine(), view_table(flag.config, views, flag.rounds, flag.steps), stream_table(flag.rounds))


def view_table(config: ConfigDict, views: tuple[str, ...], rounds: int, num_steps: int) -> Table:
    """Returns the time that each view of a batch takes, also relative to a train step without a view.

    Args:
      config: Config whose train step is the measure, with a batch of 64 images of 32x32.
      views: Names of the views.
      rounds: Number of measurements. In each of them, all views and the train step are measured in turn.
      num_steps: Number of batches in one measurement.
    """
    data = _images()
    runs: dict[str, Callable[[], Any]] = {view: _render(data, view) for view in views}
    runs["(a train step)"] = _train_step(config, data)
    seconds = in_turn(runs, rounds, num_steps)
    whole = seconds.pop("(a train step)")
    rows = []
    for view, taken in seconds.items():
        share = statistics.median(one / other for one, other in zip(taken, whole, strict=True))
        median = statistics.median(taken)
        rows.append((view, f"{1000 * median:.2f}", f"{BATCH / median:.0f}", f"{share:.1%}"))
    rows.append((f"train step of {config.model.name}", f"{1000 * statistics.median(whole):.2f}", "", ""))
    return Table(VIEW_HEADER, rows)


def _images() -> Dataset:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (512, 8, 8, 3)).astype(np.uint8)
    images = np.asarray(jax.image.resize(coarse.astype(np.float32), (512, SIZE, SIZE, 3), "linear")).astype(np.uint8)
    labels, rows = rng.integers(0, CLASSES, 512).astype(np.int32), np.arange(512, dtype=np.int32)
    stored = Stored(1 / 255, (0.5,), (0.25,), ("none", "crop_flip"))
    return Dataset("generated", images, labels, None, CLASSES, {"train": rows}, stored)


def _render(data: Dataset, view: str) -> Callable[[], Any]:
    images, rows = jnp.asarray(data.images), jnp.arange(BATCH, dtype=jnp.int32)
    options = {"view": view, "stored": data.stored}
    if view_names.parse(view).mix:
        mixed = jax.jit(functools.partial(augment.mixed, **options))
        return lambda: mixed(images, (rows, rows), (rows + BATCH, rows + BATCH), 3, 7)
    render = jax.jit(functools.partial(augment.render, train=True, **options))
    return lambda: render(images, rows, rows, 3, 7)


def _train_step(config: ConfigDict, data: Dataset) -> Callable[[], Any]:
    config = ConfigDict(config.to_dict())
    config.data.view, config.batch_size = "none", BATCH
    config = resolve(config)
    teachers = {name: fresh_teacher(config, fields, data) for name, fields in config.teachers.items()}
    return compiled_step(plan_with(config, data, teachers, jax.local_devices()[:1]), BATCH).run


class Streamed(NamedTuple):
    """A kind of data set to stream.

    Attributes:
      name: Name in the table.
      data: The data set.
      smallest: Smallest area of a random crop as a fraction of the image; 0 for the centre crop.
      workers: Numbers of processes to measure; 0 for threads of the main process.
    """

    name: str
    data: Dataset
    smallest: float
    workers: tuple[int, ...]


def stream_table(rounds: int) -> Table:
    """Returns the images per second of streams of arrays, of 32x32 files and of photographs cropped to 224x224."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for source in _sources(pathlib.Path(folder)) for row in _stream_rows(source, rounds)]
    return Table(STREAM_HEADER, rows, keys=2)


def _sources(folder: pathlib.Path) -> Iterator[Streamed]:
    stored = Stored(1 / 255, (0.5,), (0.25,), ("none", "crop_flip"))
    array = _images()
    yield Streamed("array 32x32x3", array, 0.0, (0,))
    for suffix in ("jpg", "png"):
        yield Streamed(f"files 32x32 {suffix}", _files(folder, 32, 32, 512, suffix, stored), 0.0, (0, 1, 2))
    cropped = stored._replace(size=224, kernel="bilinear", cropped=True)
    photographs = _files(folder, 375, 500, 128, "jpg", cropped)
    yield Streamed("photographs 500x375 jpg, random crop to 224x224", photographs, 0.08, (0, 1, 2))


def _files(folder: pathlib.Path, height: int, width: int, count: int, suffix: str, stored: Stored) -> Dataset:
    """Returns smooth images with noise, whose files are about as large as those of photographs."""
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        values = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        values = np.clip(values + rng.integers(-8, 9, values.shape), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{height}-{i}.{suffix}"))
        Image.fromarray(values).save(paths[-1], **({"quality": 90} if suffix == "jpg" else {}))
    rows = np.arange(count, dtype=np.int32)
    shape = (224, 224, 3) if stored.cropped else (height, width, 3)
    return Dataset("files", Files(tuple(paths)), rows % 2, None, 2, {"train": rows}, stored, image_shape=shape)


def _stream_rows(source: Streamed, rounds: int) -> Iterator[tuple]:
    batch = min(BATCH, len(source.data.splits["train"]))
    order = make_order(source.data, batch, 0)
    batches = max(4, 1024 // batch) if not source.smallest else 6
    for workers in source.workers:
        stream = train_stream(source.data, order, 0, 10**6, smallest=source.smallest, mixes=False, workers=workers)
        for _ in range(8):  # until processes have started and buffers are full
            next(stream)
        rates = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(batches):
                next(stream)
            rates.append(batches * batch / (time.perf_counter() - began))
        stream.close()
        yield source.name, workers or "threads", f"{statistics.median(rates):.0f}"
