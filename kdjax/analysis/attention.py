"""Where a network looks: class-activation maps, Grad-CAM, and how far the regions of several networks overlap.

The multi-teacher paper (Expert Systems with Applications 262, 2025) compares teachers by the IoU of class-activation
maps: not Grad-CAM, and not of one class but summed over all. Networks are compared on the same view, in eval mode.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.analysis._checks import as_float, as_mask, is_seen, show
from kdjax.analysis.sums import totals


def class_activation(features: Array, kernel: Array, bias: Array | None = None, classes: Array | None = None) -> Array:
    """Class-activation maps: the classifier applied to every position of the last feature map (Zhou et al., 2016).

    Args:
      features: [batch, height, width, dim], what the network averages over positions before its classifier.
      kernel: [dim, classes], the classifier's.
      bias: [classes]; a constant that `normalize_maps` takes away again.
      classes: integers [batch] in [0, classes), of which class each map is; None sums the maps of all classes, as the
        multi-teacher paper does.

    Returns:
      [batch, height, width].

    Raises:
      ValueError: the shapes do not fit, or, where values can be seen, a class that the kernel lacks.
    """
    features, kernel = _as_features(features), as_float(kernel)
    if kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        raise ValueError(f"kernel must be [dim, classes], not {show(kernel)} beside features {show(features)}.")
    bias = jnp.zeros(kernel.shape[1], kernel.dtype) if bias is None else as_float(bias)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be [classes], not {show(bias)} beside kernel {show(kernel)}.")
    if classes is None:
        return _weighted(features, jnp.sum(kernel, axis=1)) + jnp.sum(bias)
    classes = _as_classes(classes, features, kernel.shape[1])
    return _weighted(features, kernel[:, classes].T[:, None, None, :]) + bias[classes][:, None, None]


def logit_gradients(head: Callable[[Array], Array], features: Array, classes: Array) -> Array:
    """Gradients of each example's logit of one class with respect to its features: what `grad_cam` weighs by.

    Args:
      head: features [batch, height, width, dim] -> logits [batch, classes], in eval mode: no example may see another.
      features: [batch, height, width, dim].
      classes: integers [batch], in [0, classes).

    Returns:
      [batch, height, width, dim].

    Raises:
      ValueError: the shapes do not fit, or, where values can be seen, a class that the head lacks.
    """
    features = _as_features(features)
    classes = _as_classes(classes, features, jax.eval_shape(head, features).shape[1])
    return jax.grad(lambda x: jnp.sum(jnp.take_along_axis(head(x), classes[:, None], axis=1)))(features)


def grad_cam(features: Array, gradients: Array) -> Array:
    """Grad-CAM, relu(sum_c w_c A_c) with w the mean over positions of the logit's gradient (Selvaraju et al., 2017).

    Args:
      features: [batch, height, width, dim], A.
      gradients: [batch, height, width, dim], of a logit with respect to A (see `logit_gradients`).

    Returns:
      [batch, height, width], at least 0.

    Raises:
      ValueError: the shapes differ.
    """
    features, gradients = _as_features(features), as_float(gradients)
    if features.shape != gradients.shape:
        raise ValueError(f"features {show(features)} and gradients {show(gradients)} must have one shape.")
    return jax.nn.relu(_weighted(features, jnp.mean(gradients, axis=(1, 2), keepdims=True)))


def resize_maps(maps: Array, size: tuple[int, int]) -> Array:
    """Bilinear resize with half-pixel centres and no smoothing: torch's with align_corners=False.

    Args:
      maps: [batch, height, width].
      size: (height, width) of the result.

    Returns:
      [batch, *size]; a constant map stays constant to the last bit.

    Raises:
      ValueError: maps have another number of axes, or the size is not two positive numbers.
    """
    maps = _as_maps(maps)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), not {size!r}.")
    least = jnp.min(maps, axis=(1, 2), keepdims=True)  # apart: weights that sum to nearly 1 would rock a constant map
    return least + jax.image.resize(maps - least, (maps.shape[0], *size), "bilinear", antialias=False)


def normalize_maps(maps: Array, epsilon: float = 1e-8) -> Array:
    """Each map between its least and largest value, (m - min) / (max - min + epsilon).

    Args:
      maps: [batch, height, width].
      epsilon: in the denominator; a constant map becomes 0.

    Returns:
      [batch, height, width], in [0, 1].

    Raises:
      ValueError: maps have another number of axes.
    """
    maps = _as_maps(maps)
    least, largest = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (jnp.min, jnp.max))
    return (maps - least) / (largest - least + epsilon)


def regions(maps: Array, size: tuple[int, int], threshold: float = 0.4) -> Array:
    """Where maps are high: resized to the input, each between 0 and 1, above the threshold.

    Args:
      maps: [batch, height, width], of `class_activation` or `grad_cam`.
      size: (height, width) of the input.
      threshold: in [0, 1); 0.4 in the multi-teacher paper's released code.

    Returns:
      [batch, *size] bool.

    Raises:
      ValueError: shapes do not fit, or the threshold is out of range.
    """
    if is_seen(threshold) and not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), not {threshold!r}.")
    return normalize_maps(resize_maps(maps, size)) > threshold


def iou_sums(masks: Sequence[Array], mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Totals of a batch for the overlap of several networks' regions; they add over batches and devices.

    The overlap of all of them: pixels in every region over pixels in any.

    Args:
      masks: two or more bool [batch, height, width], one a network.
      mask: [batch], the examples that count; None for all.

    Returns:
      name -> (sum, count): 'iou', the mean over images, those where no network has a region left out; 'pooled_iou',
      pixels in every region over pixels in any, in the whole set; 'empty', the share of images left out. `means`
      finishes them.

    Raises:
      ValueError: fewer than two, shapes that differ, or more pixels than a 32-bit count holds.
    """
    shared, united, mask = _overlaps(masks, mask)
    return _iou_totals(shared, united, mask)


def reference_code_iou_sums(masks: Sequence[Array], mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Overlap as the multi-teacher paper's released code averages it: pooled pixels of a batch, weighted by its size.

    It adds over batches, not over devices that share one, and depends on how the set is cut into batches.

    Args:
      masks: two or more bool [batch, height, width], one a network; three give triple intersection over triple union.
      mask: [batch], the examples that count; None for all.

    Returns:
      {'reference_code_iou': (ratio * size, size)}; a batch without any region has size 0.

    Raises:
      ValueError: of `iou_sums`.
    """
    shared, united, mask = _overlaps(masks, mask)
    shared, united = (jnp.sum(jnp.where(mask, part, 0)) for part in (shared, united))
    size = jnp.where(united > 0, jnp.sum(mask), 0)
    return {"reference_code_iou": (shared / jnp.maximum(united, 1) * size, size)}


@jax.jit
def _iou_totals(shared: Array, united: Array, mask: Array) -> dict[str, tuple[Array, Array]]:
    some = united > 0
    iou = totals({"iou": shared / jnp.where(some, united, 1)}, mask & some)
    pooled = (jnp.sum(jnp.where(mask, shared, 0)), jnp.sum(jnp.where(mask, united, 0)))
    return {**iou, "pooled_iou": pooled, **totals({"empty": (~some).astype(int)}, mask)}


def _overlaps(masks: Sequence[Array], mask: Array | None) -> tuple[Array, Array, Array]:
    """Returns pixels in every region and in any, [batch] each, and the mask."""
    masks = [jnp.asarray(each) for each in masks]
    shapes = [show(each) for each in masks]
    if len(masks) < 2 or len(set(shapes)) > 1 or masks[0].ndim != 3:
        raise ValueError(f"an overlap needs two or more regions of one shape [batch, height, width], not {shapes}.")
    if any(each.dtype != bool for each in masks):
        raise ValueError(f"regions must be bool, not {[str(each.dtype) for each in masks]}; see regions().")
    if masks[0].size >= 2**31:
        raise ValueError(f"regions {shapes[0]} have more pixels than one count holds; add up smaller batches.")
    return *_pixels(masks), as_mask(mask, masks[0])


@jax.jit
def _pixels(masks: list[Array]) -> tuple[Array, Array]:
    """Counts pixels in every region and in any, [batch] each."""
    shared, united = functools.reduce(jnp.logical_and, masks), functools.reduce(jnp.logical_or, masks)
    return jnp.sum(shared, axis=(1, 2)), jnp.sum(united, axis=(1, 2))


@jax.jit
def _weighted(features: Array, weights: Array) -> Array:
    """Sums over channels in full precision: a matrix product would be rounded on a TPU, and a threshold follows."""
    return jnp.sum(features * weights, axis=-1)


def _as_features(features: Any) -> Array:
    features = as_float(features)
    if features.ndim != 4:
        raise ValueError(f"features must be [batch, height, width, dim], not {show(features)}.")
    return features


def _as_maps(maps: Any) -> Array:
    maps = as_float(maps)
    if maps.ndim != 3 or min(maps.shape[1:]) < 1:
        raise ValueError(f"maps must be [batch, height, width], not {show(maps)}.")
    return maps


def _as_classes(classes: Any, features: Array, count: int) -> Array:
    classes = jnp.asarray(classes)
    if classes.shape != features.shape[:1] or not jnp.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"classes must be integers [batch], not {classes.dtype} {show(classes)} beside features.")
    if is_seen(classes):  # an index out of range would be another class, or none, without a word
        wrong = [each for each in np.asarray(classes).tolist() if not 0 <= each < count]
        if wrong:
            raise ValueError(f"class {wrong[0]} is none of the classifier's {count}.")
    return classes
