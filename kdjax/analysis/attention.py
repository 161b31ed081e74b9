"""Where a network looks: class-activation maps, Grad-CAM, and how far the regions of several networks overlap.

Guo et al. (2024) compare teachers by the intersection over union (IoU) of class-activation maps, not of Grad-CAM; the
maps are summed over all classes. Compare networks on the same view of an image and in evaluation mode.

Reference: Guo, Zhong, Liu, Feng & Ma, 2024, "Why Does Knowledge Distillation Work? Rethink Its Attention and Fidelity
Mechanism", https://arxiv.org/abs/2405.00739
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from kdjax.analysis._checks import as_float, as_mask, is_concrete, show
from kdjax.analysis.sums import totals


def class_activation(features: Array, kernel: Array, bias: Array | None = None, classes: Array | None = None) -> Array:
    """Returns class-activation maps, the linear classifier applied at every position of the last feature map.

    Args:
      features: Last feature map [batch, height, width, dim], which the network averages over positions and classifies.
      kernel: Weights of the classifier [dim, classes].
      bias: Bias of the classifier [classes], or None. It is a constant, which `normalize_maps` removes.
      classes: Integer class [batch] in [0, classes) of each map; None sums the maps of all classes, as Guo et al. do.

    Returns:
      Maps [batch, height, width].

    Raises:
      ValueError: The shapes do not match, or, outside compiled functions, a class is not one of the classifier's.

    References:
      Zhou, Khosla, Lapedriza, Oliva & Torralba, 2016, "Learning Deep Features for Discriminative Localization",
      https://arxiv.org/abs/1512.04150
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
    """Returns the gradient of each example's logit of one class with respect to its features, for `grad_cam`.

    Args:
      head: Function of features [batch, height, width, dim] that returns logits [batch, classes], in evaluation mode,
        so that an example's logits depend on its own features only.
      features: Feature map [batch, height, width, dim].
      classes: Integer class [batch] of the logit to differentiate.

    Returns:
      Gradients [batch, height, width, dim].

    Raises:
      ValueError: The shapes do not match, or, outside compiled functions, a class is not one of the head's.
    """
    features = _as_features(features)
    classes = _as_classes(classes, features, jax.eval_shape(head, features).shape[1])
    return jax.grad(lambda x: jnp.sum(jnp.take_along_axis(head(x), classes[:, None], axis=1)))(features)


def grad_cam(features: Array, gradients: Array) -> Array:
    """Returns Grad-CAM maps, relu(sum_c w_c A_c), with w the mean over positions of a logit's gradient.

    Args:
      features: Feature map A [batch, height, width, dim].
      gradients: Gradients of a logit with respect to A [batch, height, width, dim]; see `logit_gradients`.

    Returns:
      Maps [batch, height, width], at least 0.

    Raises:
      ValueError: The shapes differ.

    References:
      Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra, 2017, "Grad-CAM: Visual Explanations from Deep Networks via
      Gradient-based Localization", eqs. 1 and 2, https://arxiv.org/abs/1610.02391
    """
    features, gradients = _as_features(features), as_float(gradients)
    if features.shape != gradients.shape:
        raise ValueError(f"features {show(features)} and gradients {show(gradients)} must have one shape.")
    return jax.nn.relu(_weighted(features, jnp.mean(gradients, axis=(1, 2), keepdims=True)))


def resize_maps(maps: Array, size: tuple[int, int]) -> Array:
    """Resizes maps bilinearly between pixel centres without smoothing, as PyTorch does with align_corners=False.

    Args:
      maps: Maps [batch, height, width].
      size: Height and width of the result.

    Returns:
      Maps [batch, *size]; a constant map stays exactly constant.

    Raises:
      ValueError: The maps do not have three axes, or the size is not two positive numbers.
    """
    maps = _as_maps(maps)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), not {size!r}.")
    # The minimum is added after resizing: interpolation weights sum to 1 only up to rounding, which would give a
    # constant map small differences, and `normalize_maps` would blow them up.
    least = jnp.min(maps, axis=(1, 2), keepdims=True)
    return least + jax.image.resize(maps - least, (maps.shape[0], *size), "bilinear", antialias=False)


def normalize_maps(maps: Array, epsilon: float = 1e-8) -> Array:
    """Scales each map to [0, 1] by its own minimum and maximum, (m - min) / (max - min + epsilon).

    Args:
      maps: Maps [batch, height, width].
      epsilon: Number added to the denominator, so that a constant map becomes 0.

    Returns:
      Maps [batch, height, width], in [0, 1].

    Raises:
      ValueError: The maps do not have three axes.
    """
    maps = _as_maps(maps)
    least, largest = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (jnp.min, jnp.max))
    return (maps - least) / (largest - least + epsilon)


def regions(maps: Array, size: tuple[int, int], threshold: float = 0.4) -> Array:
    """Returns the region where each map is high: maps are resized to the input, scaled to [0, 1] and thresholded.

    Args:
      maps: Maps [batch, height, width], from `class_activation` or `grad_cam`.
      size: Height and width of the input.
      threshold: Value in [0, 1) above which a pixel belongs to the region; the code of Guo et al. (2024) has 0.4.

    Returns:
      Boolean regions [batch, *size].

    Raises:
      ValueError: The shapes do not match, or the threshold is out of range.
    """
    if is_concrete(threshold) and not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), not {threshold!r}.")
    return normalize_maps(resize_maps(maps, size)) > threshold


def iou_sums(masks: Sequence[Array], mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Returns a batch's totals of the overlap of several networks' regions; they add over batches and devices.

    The overlap of an image is its intersection over union: pixels that all regions share over pixels in any region.

    Args:
      masks: Boolean regions [batch, height, width] of two or more networks.
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      Mapping of name -> (sum, count), which `means` turns into means. 'iou' is the mean over images, without those in
      which no network has a region; 'pooled_iou' is the intersection over union of all images' pixels together; 'empty'
      is the share of images in which no network has a region.

    Raises:
      ValueError: There are fewer than two networks, shapes differ, or a 32-bit count cannot hold the number of pixels.
    """
    shared, united, mask = _overlaps(masks, mask)
    return _iou_totals(shared, united, mask)


def reference_code_iou_sums(masks: Sequence[Array], mask: Array | None = None) -> dict[str, tuple[Array, Array]]:
    """Returns a batch's totals of the overlap as the code of Guo et al. (2024) averages it.

    That code pools the pixels of a batch and averages the batches' ratios, weighted by their sizes. The result depends
    on how the set is cut into batches. The totals add over batches, but not over devices that share a batch.

    Args:
      masks: Boolean regions [batch, height, width] of two or more networks; the overlap is that of all of them.
      mask: Mask [batch] of the examples that count; None counts all.

    Returns:
      {'reference_code_iou': (ratio * size, size)}; a batch without any region has size 0.

    Raises:
      ValueError: The regions are refused by `iou_sums`.
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
    """Returns the numbers of pixels in all regions and in any region, each [batch], and the mask [batch]."""
    checked = [jnp.asarray(each) for each in masks]
    shapes = [show(each) for each in checked]
    if len(checked) < 2 or len(set(shapes)) > 1 or checked[0].ndim != 3:
        raise ValueError(f"an overlap needs two or more regions of one shape [batch, height, width], not {shapes}.")
    if any(each.dtype != bool for each in checked):
        raise ValueError(f"regions must be bool, not {[str(each.dtype) for each in checked]}; see regions().")
    if checked[0].size >= 2**31:
        raise ValueError(f"regions {shapes[0]} have more pixels than a 32-bit count holds; add up smaller batches.")
    return *_pixels(checked), as_mask(mask, checked[0])


@jax.jit
def _pixels(masks: list[Array]) -> tuple[Array, Array]:
    """Returns the numbers of pixels in all regions and in any region, each [batch]."""
    shared, united = functools.reduce(jnp.logical_and, masks), functools.reduce(jnp.logical_or, masks)
    return jnp.sum(shared, axis=(1, 2)), jnp.sum(united, axis=(1, 2))


@jax.jit
def _weighted(features: Array, weights: Array) -> Array:
    """Returns the weighted sum over channels in full precision.

    A TPU rounds the factors of a matrix product by default, which can move pixels across a threshold.
    """
    return jnp.sum(features * weights, axis=-1)


def _as_features(features: ArrayLike) -> Array:
    """Returns features [batch, height, width, dim] in float32 or wider; refuses another number of axes."""
    features = as_float(features)
    if features.ndim != 4:
        raise ValueError(f"features must be [batch, height, width, dim], not {show(features)}.")
    return features


def _as_maps(maps: ArrayLike) -> Array:
    """Returns maps [batch, height, width] in float32 or wider; refuses other numbers of axes and empty maps."""
    maps = as_float(maps)
    if maps.ndim != 3 or min(maps.shape[1:]) < 1:
        raise ValueError(f"maps must be [batch, height, width], not {show(maps)}.")
    return maps


def _as_classes(classes: ArrayLike, features: Array, count: int) -> Array:
    """Returns integer classes [batch]; refuses other shapes and types, and values outside [0, count)."""
    classes = jnp.asarray(classes)
    if classes.shape != features.shape[:1] or not jnp.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"classes must be integers [batch], not {classes.dtype} {show(classes)} beside features.")
    if is_concrete(classes):  # jax raises no error for an index out of range: it would silently be another class
        wrong = [each for each in np.asarray(classes).tolist() if not 0 <= each < count]
        if wrong:
            raise ValueError(f"class {wrong[0]} is not one of the classifier's {count} classes.")
    return classes
