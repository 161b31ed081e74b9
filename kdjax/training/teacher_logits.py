"""Teachers' logits over the training set, computed once where a teacher's view of an example never changes."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

from kdjax.data import Dataset, Stored, eval_batches
from kdjax.data.views import augment
from kdjax.training import forward, parallel
from kdjax.training.evaluation import make_batches, resident, streamed_batches
from kdjax.training.identity import ByIdentity
from kdjax.training.spec import Model
from kdjax.training.stored_teachers import resident_outputs
from kdjax.training.teachers import Teacher
from kdjax.types import Array, Batch, Device, TopK

if TYPE_CHECKING:
    from kdjax.training.plan import Plan  # which reads teachers' logits to fit their temperatures


def cached_logits(plan: "Plan") -> dict[str, np.ndarray | TopK]:
    """Returns name -> [rows of the data set, classes] logits of each teacher that is not run in the step.

    Rows outside the training split are 0 or never read. A teacher that is a file may have an axis of views before the
    classes, or top classes alone.
    """
    return {teacher.name: _cached(plan, teacher.name) for teacher in plan.spec.teachers if teacher.cached}


def _cached(plan: "Plan", name: str) -> np.ndarray | TopK:
    teacher = plan.teachers[name]
    if teacher.outputs is not None:
        return resident_outputs(teacher.outputs, plan.dataset)
    training = _TrainingSet(plan.dataset)
    return _logits(name, ByIdentity(teacher), training, plan.config.eval_batch_size, plan.devices)


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
    rows = training.dataset.splits["train"]
    logits = logits_of_rows(name, teacher.value, training.dataset, rows, batch_size, devices)
    found = np.zeros((len(training.dataset.labels), logits.shape[-1]), logits.dtype)
    found[rows] = logits
    return found


def logits_of_rows(
    name: str, teacher: Teacher, data: Dataset, rows: np.ndarray, batch_size: int, devices: tuple[Device, ...]
) -> np.ndarray:
    """Returns a teacher's logits [rows, classes] for images without augmentation.

    Args:
      name: Name of the teacher in the config, for messages.
      teacher: The teacher.
      data: Data set, in the memory of the devices or streamed.
      rows: Rows of the data set.
      batch_size: Examples over all devices, a multiple of their number.
      devices: Devices of this process.
    """
    assert teacher.model is not None
    index, mask = eval_batches(rows, batch_size)
    run = _compiled(name, teacher.model, data.stored, devices)
    arrays = resident(data, devices)
    if data.streamed:
        parts = [run(teacher.variables, arrays, batch) for batch in streamed_batches(data, index, mask, devices)]
    else:
        parts = [run(teacher.variables, arrays, make_batches(index, mask, 0, devices))]
    logits = np.concatenate([np.asarray(part) for part in jax.device_get(parts)])
    return logits.reshape(-1, logits.shape[-1])[: len(rows)]


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
