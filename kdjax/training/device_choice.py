"""How many of a host's emulated devices a run is worth: `--cpu_devices=auto`."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from kdjax import models
from kdjax.training import forward, processes
from kdjax.training.plan import Plan, batch_norm_scope
from kdjax.training.spec import Model
from kdjax.types import Device

# Multiply-adds of a step from which a device is worth its share. On two cores, two took 0.78 times as long as one
# where each had 9.7 billion (wrn_16_2 alone), 0.84 times with 3.9 (resnet20 alone), 0.99 with 2.5 (resnet20 teaches
# resnet8) and 1.2 with 0.1 (resnet8 teaches resnet8 on digits); `bench step` measures it.
LEAST_WORK = 2.5e9
PASSES = 3  # a network that is trained takes about three times its forward pass: values, gradients of both factors


def suited_devices(plan: Plan, devices: Sequence[Device]) -> tuple[Device, ...]:
    """Returns the devices that a run is trained on if it may choose.

    On CPU these are as many as divide both batch sizes and have enough to do; one, where the number of devices would
    change the run: with statistics of each device's own part of a batch, and with draws from the dropout stream.
    Elsewhere, and with several processes, they are all.

    Args:
      plan: The run, planned for any number of devices.
      devices: Devices of this process.
    """
    devices = tuple(devices)
    if devices[0].platform != "cpu" or processes.count() > 1:
        return devices
    config = plan.config
    most = min(len(devices), int(step_work(plan) // LEAST_WORK))
    fitting = [n for n in range(2, most + 1) if config.batch_size % n == 0 and config.eval_batch_size % n == 0]
    return devices[: fitting[-1]] if fitting and not depends_on_devices(plan) else devices[:1]


def depends_on_devices(plan: Plan) -> bool:
    """Whether a run on another number of devices is another run, beyond the rounding of sums."""
    own_statistics = batch_norm_scope(plan) == "per_device"
    return own_statistics or forward.draws_dropout(plan.spec, plan.variables, plan.dataset.input_shape)


def step_work(plan: Plan) -> float:
    """Returns about how many multiply-adds a step of a run takes, over all devices."""
    shape = plan.dataset.input_shape
    work = PASSES * _forward_work(plan.spec.model, plan.variables, shape)
    for teacher in plan.spec.teachers:
        if teacher.runs:
            work += _forward_work(teacher.model, plan.teachers[teacher.name].variables, shape)
    return plan.config.batch_size * work


def _forward_work(model: Model, variables: Mapping[str, Any], input_shape: tuple[int, ...]) -> float:
    """Returns the multiply-adds of all kernels for one image: the size of each times the places that it is used at."""
    places = _places(model, input_shape)
    kernels = traverse_util.flatten_dict(variables["params"], sep="/")
    sizes = {path: np.size(leaf) for path, leaf in kernels.items() if np.ndim(leaf) > 1}
    return float(sum(size * places.get(path.rpartition("/")[0], 1) for path, size in sizes.items()))


@functools.lru_cache(maxsize=64)
def _places(model: Model, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Returns by the path of each layer at how many places of an image it computes an output."""
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    _, outputs = models.feature_shapes(module, (1, *input_shape))
    return {path: math.prod(shape[1:-1]) for path, shape in outputs.items()}
