"""Times views on the device, and streams that read arrays, small files and photographs."""

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
from ml_collections import ConfigDict

from kdjax.bench.step import fresh_teacher, machine, one_step
from kdjax.data import Dataset, Stored, make_order
from kdjax.data.encoded import Files
from kdjax.data.stream import train_stream
from kdjax.data.views import augment
from kdjax.data.views import names as view_names
from kdjax.reporting.tables import markdown
from kdjax.training.plan import plan_with, resolve

BATCH, SIZE, CLASSES = 64, 32, 10
SHOWN = (
    *("none", "crop_flip", "crop_flip+cutout:16", "flip+rotate:15", "rrc_flip", "rrc_flip_rotate"),
    *("crop_flip+jitter", "crop_flip+autoaugment", "autoaugment_cifar10", "crop_flip+randaugment:2,10"),
    *("crop_flip+mixup:1", "crop_flip+cutmix:1"),
)


def show(flag: Any) -> None:
    """Prints the tables that the command's flags ask for; the config is that of the step views are compared with."""
    views = tuple(flag.only) or SHOWN
    print(f"{machine()}\n\n{view_table(flag.config, views, flag.rounds, flag.steps)}\n\n{stream_table(flag.rounds)}")


def view_table(config: ConfigDict, views: tuple[str, ...], rounds: int, num_steps: int) -> str:
    """Returns milliseconds that each view of a batch takes, alone, and as a part of a train step without a view.

    Args:
      config: of a student alone or a teacher, whose step is the measure; batch 64 of 32x32 images.
      views: names.
      rounds: of measurements, in turn.
      num_steps: batches a turn.
    """
    data = _images()
    step = _train_step(config, data)
    runs: dict[str, Callable[[], Any]] = {view: _render(data, view) for view in views}
    runs["(a train step)"] = step
    seconds = _alternate(runs, rounds, num_steps)
    whole = seconds.pop("(a train step)")
    rows = []
    for view, taken in seconds.items():
        share = statistics.median(one / other for one, other in zip(taken, whole, strict=True))
        median = statistics.median(taken)
        rows.append((view, f"{1000 * median:.2f}", f"{BATCH / median:.0f}", f"{share:.1%}"))
    rows.append((f"a step of {config.model.name}", f"{1000 * statistics.median(whole):.2f}", "", ""))
    return markdown(("view of 64 images 32x32", "ms a batch", "images/s", "share of a step"), rows)


def _alternate(runs: dict[str, Callable], rounds: int, count: int) -> dict[str, list[float]]:
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(count):
                jax.block_until_ready(run())
            seconds[name].append((time.perf_counter() - began) / count)
    return seconds


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
    lowered, (carry, fixed, batches) = one_step(plan_with(config, data, teachers, jax.local_devices()[:1]), BATCH)
    compiled, carried = lowered.compile(), [carry]

    def step():
        carried[0] = compiled(carried[0], fixed, batches)
        return carried[0]

    return step


class Source(NamedTuple):
    """One kind of set to stream.

    Attributes:
      name: for the table.
      data: the set.
      smallest: of a random crop, 0 for none.
      workers: processes to measure; 0: threads of one.
    """

    name: str
    data: Dataset
    smallest: float
    workers: tuple[int, ...]


def stream_table(rounds: int) -> str:
    """Returns images a second of streams: arrays, files of 32x32, photographs cropped to 224x224; by processes."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for source in _sources(pathlib.Path(folder)) for row in _stream_rows(source, rounds)]
    return markdown(("stream", "processes", "images/s"), rows)


def _sources(folder: pathlib.Path) -> Iterator[Source]:
    stored = Stored(1 / 255, (0.5,), (0.25,), ("none", "crop_flip"))
    array = _images()
    yield Source("array 32x32x3", array, 0.0, (0,))
    for suffix in ("jpg", "png"):
        yield Source(f"files 32x32 {suffix}", _files(folder, 32, 32, 512, suffix, stored), 0.0, (0, 1, 2))
    cropped = stored._replace(size=224, kernel="bilinear", cropped=True)
    photographs = _files(folder, 375, 500, 128, "jpg", cropped)
    yield Source("photographs 500x375 jpg, random crop to 224x224", photographs, 0.08, (0, 1, 2))


def _files(folder: pathlib.Path, height: int, width: int, count: int, suffix: str, stored: Stored) -> Dataset:
    """Smooth images with noise, whose files are about as long as those of photographs."""
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


def _stream_rows(source: Source, rounds: int) -> Iterator[tuple]:
    batch = min(BATCH, len(source.data.splits["train"]))
    order = make_order(source.data, batch, 0)
    batches = max(4, 1024 // batch) if not source.smallest else 6
    for workers in source.workers:
        stream = train_stream(source.data, order, 0, 10**6, smallest=source.smallest, mixes=False, workers=workers)
        for _ in range(8):  # processes start, buffers fill
            next(stream)
        rates = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(batches):
                next(stream)
            rates.append(batches * batch / (time.perf_counter() - began))
        stream.close()
        yield source.name, workers or "threads", f"{statistics.median(rates):.0f}"
