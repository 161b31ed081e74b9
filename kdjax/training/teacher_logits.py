"""Teachers' logits over the training set, computed once where a teacher's view of an example never changes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from kdjax.data import Dataset, Stored, eval_batches
from kdjax.data.views import augment
from kdjax.training import forward, parallel
from kdjax.training.evaluation import make_batches, resident
from kdjax.training.identity import ByIdentity
from kdjax.training.plan import Plan
from kdjax.training.spec import Model
from kdjax.training.teachers import Teacher
from kdjax.types import Array, Batch, Device


def cached_logits(plan: Plan) -> dict[str, np.ndarray]:
    """Returns name -> [rows of the data set, classes] logits of each teacher that is not run in the step.

    Rows outside the training split are 0 and never read.
    """
    return {
        teacher.name: _logits(
            teacher.name,
            ByIdentity(plan.teachers[teacher.name]),
            _TrainingSet(plan.dataset),
            plan.config.eval_batch_size,
            plan.devices,
        )
        for teacher in plan.spec.teachers
        if teacher.cached
    }


class _TrainingSet:
    """The training images of a data set as a key: two sets are one if they read the same rows of the same arrays."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._key = (id(dataset.images), dataset.splits["train"].tobytes(), dataset.stored)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TrainingSet) and self._key == other._key


@functools.lru_cache(maxsize=32)  # students of one process that share a teacher and its view share its logits
def _logits(
    name: str, teacher: ByIdentity, training: _TrainingSet, batch_size: int, devices: tuple[Device, ...]
) -> np.ndarray:
    return _compute(name, teacher.value, training.dataset, batch_size, devices)


def _compute(name: str, teacher: Teacher, data: Dataset, batch_size: int, devices: tuple[Device, ...]) -> np.ndarray:
    rows = data.splits["train"]
    index, mask = eval_batches(rows, batch_size)
    run = _compiled(name, teacher.model, data.stored, devices)
    batches = make_batches(index, mask, 0, devices)
    logits = np.asarray(jax.device_get(run(teacher.variables, resident(data, devices), batches)))
    found = np.zeros((len(data.labels), logits.shape[-1]), logits.dtype)
    found[rows] = logits.reshape(-1, logits.shape[-1])[: len(rows)]
    return found


@functools.lru_cache(maxsize=32)
def _compiled(name: str, model: Model, stored: Stored, devices: tuple[Device, ...]) -> Callable[..., Array]:
    return parallel.data_parallel(functools.partial(_forward, name=name, model=model, stored=stored), devices)


def _forward(
    variables: Mapping[str, Any], arrays: Any, batches: Batch, *, name: str, model: Model, stored: Stored
) -> Array:
    """Returns the logits [steps, batch, classes] of the batches, gathered from all devices."""

    def one(_: None, batch: Batch) -> tuple[None, Array]:
        images, rows, *_rest = augment.materialize(arrays, batch)
        shown = augment.render(images, rows, batch.index, batch.epoch, 0, view="none", stored=stored, train=False)
        output = forward.run_teacher(name, model, variables, shown, train=False)
        return None, lax.all_gather(output.logits, parallel.AXIS, tiled=True)

    return lax.scan(one, None, batches)[1]
