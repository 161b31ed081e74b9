"""The map that a run's classifier looks at, found among everything that its network computes."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import analysis, models
from kdjax.data import Dataset
from kdjax.errors import UserError, nearest
from kdjax.inspection.predict import Loaded, Predictions, predict

# What a network may do between a layer and the mean over positions, by name.
ACTIVATIONS = {"as it is": lambda x: x, "ReLU": lambda x: jnp.maximum(x, 0)}
REFERENCE_CODE_BATCH = 128  # examples over which the multi-teacher paper's released code takes each mean
PROBES = 8  # examples by which the map is told from others
TOLERANCE = 0.01  # of the largest logit: a classifier may compute in bfloat16


class Head(NamedTuple):
    """Where a network's class-activation maps come from.

    Attributes:
      feature: path of the layer whose output, activated, is averaged over positions and classified.
      activation: a name of ACTIVATIONS.
      kernel: [dim, classes], of the classifier.
      bias: [classes].
    """

    feature: str
    activation: str
    kernel: np.ndarray
    bias: np.ndarray


def find_head(name: str, run: Loaded, split: str) -> Head:
    """Finds the map whose mean over positions gives, through the classifier, the network's own logits.

    Args:
      name: of the run, for messages.
      run: loaded.
      split: whose first examples tell.

    Raises:
      UserError: the network has no classifier of that name, or no such map.
    """
    kernel, bias = _classifier(name, run)
    rows = run.dataset.splits[split][:PROBES]
    own, inner = models.feature_shapes(_module(run), (1, *run.dataset.input_shape))
    shapes = {**inner, **own}
    for feature in reversed([path for path, shape in shapes.items() if len(shape) == 4 and shape[-1] == len(kernel)]):
        outputs = _predict_rows(run, feature, rows, len(run.devices) * PROBES)
        logits = {name: f(outputs.features).mean(axis=(1, 2)) @ kernel + bias for name, f in ACTIVATIONS.items()}
        errors = {name: float(np.abs(found - outputs.logits).max()) for name, found in logits.items()}
        activation = min(errors, key=errors.get)  # beside a large bias the others may be within the tolerance too
        if errors[activation] <= TOLERANCE * np.abs(outputs.logits).max():
            return Head(feature, activation, kernel, bias)
    raise UserError(
        f"attention: run '{name}' ({run.config.model.name}) has no map [height, width, {len(kernel)}] whose mean its "
        f"classifier '{run.config.model.head}' reads; class-activation maps need one."
    )


def class_activation(features: Array, head: Head, predicted: Array) -> Array:
    """Returns class-activation maps summed over all classes, [batch, height, width], as the multi-teacher paper does.

    Args:
      features: [batch, height, width, dim], what the head averages over positions.
      head: that reads them.
      predicted: integers [batch]; all classes count here, whatever the network says.
    """
    del predicted
    return analysis.class_activation(features, head.kernel, head.bias)


def grad_cam(features: Array, head: Head, predicted: Array) -> Array:
    """Returns Grad-CAM of the class that the network itself predicts, [batch, height, width] (Selvaraju et al., 2017).

    Args:
      features: [batch, height, width, dim], what the head averages over positions.
      head: that reads them.
      predicted: integers [batch].
    """

    def logits(maps: Array) -> Array:
        return jnp.mean(maps, axis=(1, 2)) @ head.kernel + head.bias

    return analysis.grad_cam(features, analysis.logit_gradients(logits, features, predicted))


# Kind of map -> (features, head, predicted classes) -> maps [batch, height, width].
MAPS = {"class activation": class_activation, "Grad-CAM": grad_cam}


def head_maps(run: Loaded, head: Head, rows: np.ndarray) -> dict[str, Array]:
    """Returns a run's maps of every kind, name of MAPS -> [rows, height, width] of the feature.

    Args:
      run: loaded.
      head: of its network.
      rows: examples.
    """
    batch_size = min(run.batch_size, -(-REFERENCE_CODE_BATCH // len(run.devices)) * len(run.devices))
    outputs = _predict_rows(run, head.feature, rows, batch_size)
    features, predicted = ACTIVATIONS[head.activation](outputs.features), outputs.logits.argmax(axis=1)
    return {name: make(features, head, predicted) for name, make in MAPS.items()}


def head_regions(run: Loaded, head: Head, rows: np.ndarray, size: tuple[int, int]) -> dict[str, Array]:
    """Returns where a run's maps are high, name of MAPS -> bool [rows, *size].

    Args:
      run: loaded.
      head: of its network.
      rows: examples.
      size: (height, width) that maps are resized to.
    """
    return {name: analysis.regions(maps, size) for name, maps in head_maps(run, head, rows).items()}


def _classifier(name: str, run: Loaded) -> tuple[np.ndarray, np.ndarray]:
    params = run.network.variables["params"]
    path = getattr(_module(run), "HEAD", run.config.model.head)
    layer = params
    for part in path.split("/"):
        layer = layer.get(part, {})
    kernel = layer.get("kernel")
    if kernel is None or np.ndim(kernel) != 2:
        raise UserError(
            f"attention: run '{name}' has no linear classifier '{path}' (config.model.head).{nearest(path, params)}"
        )
    kernel = np.asarray(kernel, np.float32)
    return kernel, np.asarray(layer.get("bias", np.zeros(kernel.shape[1])), np.float32)


def _module(run: Loaded):
    model = run.network.model
    return model.module if isinstance(model, models.Picked) else model


def _predict_rows(run: Loaded, feature: str, rows: np.ndarray, batch_size: int) -> Predictions:
    """Outputs for some rows, in their order, with one feature."""
    network = run.network._replace(model=models.Picked(_module(run), (feature,)))
    return predict(network, _only(run.dataset, rows), "rows", batch_size, run.devices, features=True)


def _only(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return dataclasses.replace(dataset, splits={**dataset.splits, "rows": rows})
