"""Pairs of a teacher and a student that benchmarks distil by KD, on synthetic images of CIFAR-100's shape."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench.step import fresh_teacher
from kdjax.config import defaults
from kdjax.data import Dataset, Stored
from kdjax.errors import UserError, lookup
from kdjax.training.plan import Plan, plan_with, resolve
from kdjax.types import Device

SIDE, CLASSES, ROWS = 32, 100, 50_000  # of CIFAR-100's training set
TEMPERATURE, LABELS_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # as in RepDistiller
RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


class Pair(NamedTuple):
    """Names of two networks of MODELS."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student}"


def parse(words: Sequence[str], known: Sequence[Pair]) -> list[Pair]:
    """Returns the pairs that --only names.

    Args:
      words: Pairs as TEACHER-STUDENT; none for all known ones.
      known: The pairs that are measured by default.

    Raises:
      UserError: A word is not a pair of networks.
    """
    found = []
    for word in words:
        names = word.split("-")
        if len(names) != 2:
            raise UserError(f"--only={word}: write a pair as TEACHER-STUDENT, such as --only=resnet20-resnet8.")
        for name in names:
            lookup(models.MODELS, name, "model")
        found.append(Pair(*names))
    return found or list(known)


def make_plans(
    pair: Pair, batch_size: int, dtype: str, members: int, rows: int, devices: Sequence[Device]
) -> list[Plan]:
    """Returns plans of KD that differ in their seed and share teacher, data, order and views.

    The teacher has random weights, since weights do not change the time, and is made ready as in a run: its BatchNorm
    is folded, and it computes in the type that `config.teacher_dtype` says.

    Args:
      pair: Teacher and student.
      batch_size: Images in a batch, over all devices.
      dtype: Type of the computation, 'float32' or 'bfloat16'.
      members: Number of students.
      rows: Number of training images.
      devices: Devices of this process.
    """
    data = noise(rows)
    configs = [_config(pair, batch_size, dtype, seed) for seed in range(members)]
    teachers = {name: fresh_teacher(configs[0], fields, data) for name, fields in configs[0].teachers.items()}
    return [plan_with(config, data, teachers, devices) for config in configs]


def _config(pair: Pair, batch_size: int, dtype: str, seed: int) -> ConfigDict:
    config = defaults()
    config.model.name, config.model.dtype = pair.student, dtype
    config.teachers = ConfigDict({"a": {"run": f"noise/{pair.teacher}-random"}})
    config.losses = ConfigDict({
        "cross_entropy": {"weight": LABELS_WEIGHT},
        "kd": {"weight": KD_WEIGHT, "temperature": TEMPERATURE},
    })  # fmt: skip
    config.optimizer.learning_rate, config.optimizer.momentum = RATE, MOMENTUM
    config.optimizer.weight_decay = WEIGHT_DECAY
    config.batch_size = config.eval_batch_size = batch_size
    config.seed, config.data.order_seed = seed, 0
    return resolve(config)


@functools.lru_cache(maxsize=4)
def noise(rows: int) -> Dataset:
    """Returns random images of CIFAR's shape with labels, since the time of a step does not depend on their content."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)
    labels = generator.integers(0, CLASSES, rows).astype(np.int32)
    stored = Stored(1 / 255, (0.5,), (0.25,), ("crop_flip", "none"))
    return Dataset("noise", images, labels, None, CLASSES, {"train": np.arange(rows, dtype=np.int32)}, stored)
