"""Convolutions whose gradients XLA's CPU backend runs fast, inside loops too; other backends use the plain ones.

XLA:CPU rewrites the gradients of `lax.conv_general_dilated` into forms that it can run in parallel in a program's entry
computation only: inside `lax.scan` or `lax.map` the same gradients were measured 17 times slower. It also spends a third
of a ResNet's step on transposing whole activations for the gradients of kernels. Here every derivative is spelled as a
forward convolution in the layout that XLA:CPU is fast in (NHWC, HWIO), and the gradient of a kernel is split over slices
of the batch, which run in parallel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

NHWC = ("NHWC", "HWIO", "NHWC")
SLICES = 8  # Parts of a batch whose kernel gradients are computed side by side; 8 was the fastest of 1 to 16 measured.


def fast_convolutions(module_call: bool) -> Callable | None:
    """Returns an interceptor for `nn.intercept_methods` that gives every `nn.Conv` the fast gradients, or None.

    Args:
      module_call: Whether the call is differentiated in reverse mode; forward calls and other backends need nothing.
    """
    if not module_call or jax.default_backend() != "cpu":
        return None
    return _intercept


def _intercept(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module = context.module
    is_conv = type(module) is nn.Conv and context.method_name == "__call__" and module.conv_general_dilated is None
    if not is_conv:
        return call_next(*args, **kwargs)
    # A module is frozen: its twin, bound to the same variables, takes the call.
    return module.clone(parent=module.scope, conv_general_dilated=convolution)(*args, **kwargs)


def convolution(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Returns what `lax.conv_general_dilated` returns for the same arguments, with gradients that are fast on CPU.

    Reverse mode is exact, also of second order. Forward mode is not defined, as for every `jax.custom_vjp`.

    Args:
      images: [batch, height, width, channels].
      kernel: [height, width, channels / groups, outputs].
      strides: Of the window.
      padding: ((low, high), (low, high)) or 'SAME' or 'VALID'.
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision, preferred_element_type: The
        arguments of `lax.conv_general_dilated`; what is not a plain two-dimensional convolution takes the plain form.
    """
    options: dict[str, Any] = {"precision": precision}
    if preferred_element_type is not None:
        options["preferred_element_type"] = preferred_element_type
    plain = functools.partial(
        lax.conv_general_dilated,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **options,
    )
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if images.ndim != 4 or dilated or precision is not None or preferred_element_type is not None:
        return plain(images, kernel, strides, padding)
    window = (int(strides[0]), int(strides[1]))
    pads = _explicit(images, kernel, window, padding)
    groups = feature_group_count
    if groups == images.shape[-1] == kernel.shape[-1]:
        return depthwise(images, kernel, window, pads)
    if groups != 1:
        return plain(images, kernel, strides, padding)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return pointwise(images, kernel, window)
    return dense(images, kernel, window, pads)


def _explicit(images: Array, kernel: Array, strides: Pair, padding: Any) -> Padding:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def pointwise(images: Array, kernel: Array, strides: Pair) -> Array:
    """Returns a 1x1 convolution as a matrix product, whose gradients are matrix products, too."""
    images = images[:, :: strides[0], :: strides[1]]
    return lax.dot_general(images, kernel[0, 0], (((3,), (0,)), ((), ())))


def depthwise(images: Array, kernel: Array, strides: Pair, pads: Padding) -> Array:
    """Returns a convolution of each channel by itself as a sum of shifted products, which XLA fuses into one pass."""
    size = [(images.shape[1 + d] + sum(pads[d]) - kernel.shape[d]) // strides[d] + 1 for d in (0, 1)]
    padded = _padded(images, pads)
    total = jnp.zeros((), images.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            rows, columns = (slice(at, at + (n - 1) * s + 1, s) for at, n, s in zip((i, j), size, strides, strict=True))
            total = total + padded[:, rows, columns] * kernel[i, j, 0]
    return total


def _padded(images: Array, pads: Padding) -> Array:
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(images: Array, kernel: Array, strides: Pair, pads: Padding) -> Array:
    """Returns a convolution over all channels, with the gradients of `_backward`."""
    return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=NHWC)


def _forward(images: Array, kernel: Array, strides: Pair, pads: Padding) -> tuple[Array, tuple[Array, Array]]:
    return dense(images, kernel, strides, pads), (images, kernel)


def _backward(strides: Pair, pads: Padding, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        input_gradient(images.shape, kernel, cotangent, strides, pads),
        kernel_gradient(images, kernel.shape, cotangent, strides, pads),
    )


dense.defvjp(_forward, _backward)


def input_gradient(shape: Sequence[int], kernel: Array, cotangent: Array, strides: Pair, pads: Padding) -> Array:
    """Returns the gradient of a convolution's input: a convolution of stride 1 with the mirrored, transposed kernel.

    Args:
      shape: The input's, [batch, height, width, channels].
      kernel: [height, width, channels, outputs].
      cotangent: The gradient of the output, [batch, out height, out width, outputs].
      strides, pads: Those of the convolution.
    """
    mirrored = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    config = [(0, 0, 0)]
    for axis in (0, 1):
        spread = (cotangent.shape[1 + axis] - 1) * strides[axis] + 1  # with strides - 1 zeros between any two values
        low = kernel.shape[axis] - 1 - pads[axis][0]
        config.append((low, shape[1 + axis] + kernel.shape[axis] - 1 - spread - low, strides[axis] - 1))
    spaced = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [*config, (0, 0, 0)])
    return lax.conv_general_dilated(spaced, mirrored, (1, 1), ((0, 0), (0, 0)), dimension_numbers=NHWC)


def kernel_gradient(images: Array, shape: Sequence[int], cotangent: Array, strides: Pair, pads: Padding) -> Array:
    """Returns the gradient of a convolution's kernel: a sum over slices of the batch, each a convolution.

    Args:
      images: [batch, height, width, channels].
      shape: The kernel's, [height, width, channels, outputs].
      cotangent: The gradient of the output, [batch, out height, out width, outputs].
      strides, pads: Those of the convolution.
    """
    batch = images.shape[0]
    slices = max(n for n in range(1, SLICES + 1) if batch % n == 0)
    size, high = batch // slices, []
    for axis in (0, 1):
        spread = (cotangent.shape[1 + axis] - 1) * strides[axis] + 1
        high.append(spread + shape[axis] - 1 - images.shape[1 + axis] - pads[axis][0])
    window = ((pads[0][0], high[0]), (pads[1][0], high[1]))
    parts = []
    for start in range(0, batch, size):
        inputs = images[start : start + size].transpose(3, 1, 2, 0)  # channels take the place of the batch
        kernels = cotangent[start : start + size].transpose(1, 2, 0, 3)
        parts.append(
            lax.conv_general_dilated(inputs, kernels, (1, 1), window, rhs_dilation=strides, dimension_numbers=NHWC)
        )
    return functools.reduce(jnp.add, parts).transpose(1, 2, 0, 3)
