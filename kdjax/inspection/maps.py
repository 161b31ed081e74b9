"""Class-activation maps and Grad-CAM of a stored run, from the feature map that its classifier averages."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import analysis, models
from kdjax.errors import UserError, nearest
from kdjax.inspection.predict import LoadedRun, Predictions, predict
from kdjax.training import parallel

# Functions that a network may apply between a layer and the mean over positions.
ACTIVATIONS = {"as it is": lambda x: x, "ReLU": lambda x: jnp.maximum(x, 0)}
REFERENCE_CODE_BATCH = 128  # number of examples over which the code of Guo et al. takes each mean
PROBES = 8  # number of examples on which candidate maps are tried
TOLERANCE = 0.01  # allowed error as a share of the largest logit; a classifier may compute in bfloat16


class Head(NamedTuple):
    """Source of a network's class-activation maps.

    Attributes:
      feature: Path of the layer whose output, after the activation, is averaged over positions and classified.
      activation: Name of the activation, a key of ACTIVATIONS.
      kernel: Kernel of the classifier [dim, classes].
      bias: Bias of the classifier [classes].
    """

    feature: str
    activation: str
    kernel: np.ndarray
    bias: np.ndarray


def find_head(name: str, run: LoadedRun, split: str) -> Head:
    """Finds the feature map from whose mean over positions the classifier computes the network's logits.

    Args:
      name: Name of the run, for messages.
      run: The loaded run.
      split: Split whose first examples are used to try the maps.

    Raises:
      UserError: The network has no classifier at config.model.head, or no such map.
    """
    kernel, bias = _classifier(name, run)
    rows = run.dataset.splits[split][:PROBES]
    own, inner = models.feature_shapes(_module(run), (1, *run.dataset.input_shape))
    shapes = {**inner, **own}
    for feature in reversed([path for path, shape in shapes.items() if len(shape) == 4 and shape[-1] == len(kernel)]):
        outputs = _predict_rows(run, feature, rows, parallel.device_count(run.devices) * PROBES)
        logits = {name: f(outputs.features).mean(axis=(1, 2)) @ kernel + bias for name, f in ACTIVATIONS.items()}
        errors = {name: float(np.abs(found - outputs.logits).max()) for name, found in logits.items()}
        activation = min(errors, key=lambda name: errors[name])  # with a large bias, several are within the tolerance
        if errors[activation] <= TOLERANCE * np.abs(outputs.logits).max():
            return Head(feature, activation, kernel, bias)
    raise UserError(
        f"attention: run '{name}' ({run.config.model.name}) has no map [height, width, {len(kernel)}] whose mean over "
        f"positions is the input of its classifier '{run.config.model.head}'; class-activation maps need one."
    )


def class_activation(features: Array, head: Head, predicted: Array) -> Array:
    """Returns class-activation maps summed over all classes [batch, height, width], as Guo et al. (2025) do.

    Args:
      features: Feature maps that the head averages over positions [batch, height, width, dim].
      head: The network's head.
      predicted: Predicted classes, integers [batch]; not used, since the sum is over all classes.
    """
    del predicted
    return analysis.class_activation(features, head.kernel, head.bias)


def grad_cam(features: Array, head: Head, predicted: Array) -> Array:
    """Returns Grad-CAM of the class that the network predicts [batch, height, width] (Selvaraju et al., 2017).

    Args:
      features: Feature maps that the head averages over positions [batch, height, width, dim].
      head: The network's head.
      predicted: Predicted classes, integers [batch].
    """

    def logits(maps: Array) -> Array:
        return jnp.mean(maps, axis=(1, 2)) @ head.kernel + head.bias

    return analysis.grad_cam(features, analysis.logit_gradients(logits, features, predicted))


# Kind of map -> (features, head, predicted classes) -> maps [batch, height, width].
MAPS = {"class activation": class_activation, "Grad-CAM": grad_cam}


def head_maps(run: LoadedRun, head: Head, rows: np.ndarray) -> dict[str, Array]:
    """Returns a run's maps of every kind, in the resolution of the feature.

    Args:
      run: The loaded run.
      head: The head of its network.
      rows: Indices of the examples in the full data set [rows].

    Returns:
      Kind of map, a key of MAPS -> maps [rows, height, width].
    """
    count = parallel.device_count(run.devices)
    batch_size = min(run.batch_size, -(-REFERENCE_CODE_BATCH // count) * count)
    outputs = _predict_rows(run, head.feature, rows, batch_size)
    features, predicted = ACTIVATIONS[head.activation](outputs.features), outputs.logits.argmax(axis=1)
    return {name: make(features, head, predicted) for name, make in MAPS.items()}


def head_regions(run: LoadedRun, head: Head, rows: np.ndarray, size: tuple[int, int]) -> dict[str, Array]:
    """Returns the regions in which a run's maps are above the threshold of `analysis.regions`.

    Args:
      run: The loaded run.
      head: The head of its network.
      rows: Indices of the examples in the full data set [rows].
      size: Height and width that the maps are resized to.

    Returns:
      Kind of map, a key of MAPS -> regions, bool [rows, *size].
    """
    return {name: analysis.regions(maps, size) for name, maps in head_maps(run, head, rows).items()}


def _classifier(name: str, run: LoadedRun) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of the linear classifier."""
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


def _module(run: LoadedRun) -> nn.Module:
    model = run.network.model
    return model.module if isinstance(model, models.FeatureExtractor) else model


def _predict_rows(run: LoadedRun, feature: str, rows: np.ndarray, batch_size: int) -> Predictions:
    """Returns the outputs for some rows, in their order, with one feature."""
    network = run.network._replace(model=models.FeatureExtractor(_module(run), (feature,)))
    dataset = dataclasses.replace(run.dataset, splits={**run.dataset.splits, "rows": rows})
    return predict(network, dataset, "rows", batch_size, run.devices, features=True)
