"""Convolutions in the forms that XLA's CPU backend runs fast, inside loops too; other backends keep the plain ones.

XLA:CPU rewrites the gradients of `lax.conv_general_dilated` into forms that it can run in parallel in a program's entry
computation only: a step of resnet8 in `lax.scan` took 21 times the processor time of the step alone. With the forms of
this file, steps in a loop took 0.8 to 0.9 of the time of steps one by one. Plain grouped and depthwise convolutions are
slow everywhere. `python -m kdjax.bench convolutions` measures the forms of this file beside the
plain ones.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Array

SLICE = 8  # Examples in a slice of the batch, for which a part of a kernel's gradient is computed.
MOST_SLICES = 8  # More are not faster and take long to compile.
LEAST_OUTPUTS = 32  # Narrower kernels take the whole batch in one slice, since slices are slower there.


class Window(NamedTuple):
    """How a kernel moves over the axes between batch and channels; hashable.

    Attributes:
      strides: Distance between two positions of the kernel, for each axis.
      padding: (low, high) zeros around the input, for each axis.
      dilation: Distance between two elements of the kernel, for each axis.
      precision: As in `lax.conv_general_dilated`.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: Any = None


def convolutions_for(platform: str) -> AbstractContextManager:
    """Returns a context in which every `nn.Conv` takes the form that is fast on a platform; 'cpu' has its own forms."""
    return nn.intercept_methods(_intercept) if platform == "cpu" else contextlib.nullcontext()


def _intercept(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module = context.module
    is_conv = type(module) is nn.Conv and context.method_name == "__call__"
    if not is_conv or module.conv_general_dilated or module.conv_general_dilated_cls:
        return call_next(*args, **kwargs)
    # A module is frozen: its twin, bound to the same variables, takes the call.
    return module.clone(parent=module.scope, conv_general_dilated=convolution)(*args, **kwargs)


def convolution(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Returns what `lax.conv_general_dilated` returns for the same arguments, in the form that is fastest on CPU.

    Reverse mode is exact, also of second order. Forward mode is not defined for all forms.

    Args:
      images: [batch, height, width, channels], or any other number of axes between batch and channels.
      kernel: [height, width, channels / groups, outputs].
      strides: Distance between two positions of the kernel, for each axis.
      padding: (low, high) for each axis, or 'SAME' or 'VALID'.
      lhs_dilation: Distance between two elements of the image, for each axis.
      rhs_dilation: Distance between two elements of the kernel, for each axis.
      dimension_numbers: Those of `nn.Conv`, which has the channels last.
      feature_group_count: Number of groups.
      precision: As in `lax.conv_general_dilated`.

    Returns:
      [batch, height, width, outputs].
    """
    del dimension_numbers
    images = _spread(images, lhs_dilation)
    size, groups = kernel.shape[:-2], feature_group_count
    dilation = tuple(rhs_dilation or (1,) * len(size))
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        padding = lax.padtype_to_pads(images.shape[1:-1], reach, strides, padding)
    window = Window(tuple(strides), tuple((int(low), int(high)) for low, high in padding), dilation, precision)
    padded = any(low or high for low, high in window.padding)
    if math.prod(size) == 1 and not padded:
        return pointwise(images, kernel, window, groups)
    if groups == images.shape[-1] == kernel.shape[-1]:
        return depthwise(images, kernel, window)
    if size == window.strides and not padded and groups == 1 and set(dilation) == {1}:
        return patchwise(images, kernel, precision)
    return dense(images, kernel if groups == 1 else block_diagonal(kernel, groups), window)


def pointwise(images: Array, kernel: Array, window: Window, groups: int) -> Array:
    """Returns a convolution whose kernel has one element: a matrix product for each group of channels."""
    images = images[(slice(None), *(slice(None, None, stride) for stride in window.strides))]
    inside, outputs = kernel.shape[-2:]
    grouped = images.reshape(*images.shape[:-1], groups, inside)
    product = jnp.einsum(
        "...gi,igo->...go", grouped, kernel.reshape(inside, groups, outputs // groups), precision=window.precision
    )
    return product.reshape(*images.shape[:-1], outputs)


def patchwise(images: Array, kernel: Array, precision: Any) -> Array:
    """Returns a convolution whose strides are its kernel's size: a matrix product over patches."""
    size, rank = kernel.shape[:-2], kernel.ndim - 2
    counts = [length // k for length, k in zip(images.shape[1:-1], size, strict=True)]
    images = images[(slice(None), *(slice(n * k) for n, k in zip(counts, size, strict=True)))]
    split = images.reshape(-1, *itertools.chain(*zip(counts, size, strict=True)), images.shape[-1])
    inner = (*range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return lax.dot_general(split, kernel, ((inner, tuple(range(rank + 1))), ((), ())), precision=precision)


def depthwise(images: Array, kernel: Array, window: Window) -> Array:
    """Returns a convolution of each channel by itself: a sum of shifted products, which XLA fuses into one pass."""
    padded = _pad(images, window.padding)
    size, strides, dilation = kernel.shape[:-2], window.strides, window.dilation
    steps = [(n - (k - 1) * d - 1) // s for n, k, s, d in zip(padded.shape[1:-1], size, strides, dilation, strict=True)]
    total = jnp.zeros((), images.dtype)
    for place in itertools.product(*map(range, size)):
        starts = [i * d for i, d in zip(place, dilation, strict=True)]
        rows = [slice(at, at + n * s + 1, s) for at, n, s in zip(starts, steps, strides, strict=True)]
        total = total + padded[(slice(None), *rows)] * kernel[place][0]
    return total


def block_diagonal(kernel: Array, groups: int) -> Array:
    """Returns the kernel over all channels that is a grouped kernel for each group, and 0 between groups.

    A grouped convolution and its gradients are 10 to 60 times slower on CPU than those of this kernel.
    """
    *size, inside, outputs = kernel.shape
    blocks = kernel.reshape(*size, 1, inside, groups, outputs // groups)
    apart = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    return (apart * blocks).reshape(*size, groups * inside, outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(images: Array, kernel: Array, window: Window) -> Array:
    """Returns a convolution over all channels. Its gradients are convolutions of the form that is fast inside loops."""
    return _convolve(images, kernel, window)


def _forward(images: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return dense(images, kernel, window), (images, kernel)


def _backward(window: Window, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        input_gradient(images.shape, kernel, cotangent, window),
        kernel_gradient(images, kernel.shape, cotangent, window),
    )


dense.defvjp(_forward, _backward)


def input_gradient(shape: Sequence[int], kernel: Array, cotangent: Array, window: Window) -> Array:
    """Returns the gradient of a convolution's input: a convolution with the mirrored, transposed kernel.

    Args:
      shape: Shape of the input, [batch, height, width, channels].
      kernel: [height, width, channels, outputs].
      cotangent: Gradient of the output, [batch, out height, out width, outputs].
      window: The convolution's.
    """
    axes = range(kernel.ndim - 2)
    mirrored = jnp.swapaxes(jnp.flip(kernel, tuple(axes)), -1, -2)
    padding = []
    for i in axes:
        reach = (kernel.shape[i] - 1) * window.dilation[i]
        spread = (cotangent.shape[1 + i] - 1) * window.strides[i] + 1  # with strides - 1 zeros between two values
        low = reach - window.padding[i][0]
        padding.append((low, shape[1 + i] + reach - spread - low))
    ones = (1,) * len(axes)
    return _convolve(cotangent, mirrored, window._replace(strides=ones, padding=tuple(padding)), window.strides)


def kernel_gradient(images: Array, shape: Sequence[int], cotangent: Array, window: Window) -> Array:
    """Returns the gradient of a convolution's kernel: a sum over slices of the batch, each of them a convolution.

    Args:
      images: [batch, height, width, channels].
      shape: Shape of the kernel, [height, width, channels, outputs].
      cotangent: Gradient of the output, [batch, out height, out width, outputs].
      window: The convolution's.
    """
    crop, padding = [], []
    for i in range(len(shape) - 2):
        spread = (cotangent.shape[1 + i] - 1) * window.strides[i] + 1
        low = window.padding[i][0]
        high = spread + (shape[i] - 1) * window.dilation[i] - images.shape[1 + i] - low
        crop.append((0, min(high, 0)))  # pixels that no position of the kernel reaches
        padding.append((low, max(high, 0)))
    own = window._replace(strides=window.dilation, padding=tuple(padding), dilation=window.strides)
    images, part = _pad(images, crop), images.shape[0] // _slices(images.shape[0], shape[-1])
    parts = []
    for start in range(0, images.shape[0], part):
        inputs = jnp.swapaxes(images[start : start + part], 0, -1)  # channels take the place of the batch
        parts.append(_convolve(inputs, jnp.moveaxis(cotangent[start : start + part], 0, -2), own))
    return jnp.moveaxis(functools.reduce(jnp.add, parts), 0, -2)


def _slices(batch: int, outputs: int) -> int:
    """Returns into how many slices a batch is split for the gradient of a kernel; it divides the batch."""
    most = min(MOST_SLICES, batch // SLICE) if outputs >= LEAST_OUTPUTS else 1
    return max(n for n in range(1, max(most, 1) + 1) if batch % n == 0)


def _convolve(images: Array, kernel: Array, window: Window, spread: Sequence[int] | None = None) -> Array:
    """Convolves with the channels last, the layout that XLA:CPU is fast in; `spread` puts zeros between pixels."""
    axes = "HWDTUV"[: kernel.ndim - 2]
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        lhs_dilation=spread,
        rhs_dilation=window.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=window.precision,
    )


def _spread(images: Array, dilation: Sequence[int] | None) -> Array:
    """Puts zeros between the elements of the axes between batch and channels."""
    if not dilation or set(dilation) == {1}:
        return images
    config = [(0, 0, 0), *((0, 0, step - 1) for step in dilation), (0, 0, 0)]
    return lax.pad(images, jnp.zeros((), images.dtype), config)


def _pad(images: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Pads the axes between batch and channels; a negative number cuts."""
    if not any(low or high for low, high in padding):
        return images
    config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(images, jnp.zeros((), images.dtype), config)
