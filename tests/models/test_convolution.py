"""Convolutions in the forms that are fast on CPU have the values and the gradients of the plain ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kdjax.models import convolutions_for
from kdjax.models.convolution import convolution

NHWC = ("NHWC", "HWIO", "NHWC")

# name -> kernel, strides, padding, dilation of the kernel, input channels, output channels, groups
KINDS = {
    "3x3": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, 6, 1),
    "3x3 strided": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 4, 6, 1),
    "3x3 'SAME'": ((3, 3), (2, 2), "SAME", (1, 1), 4, 6, 1),
    "3x3 wide": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3, 40, 1),
    "dilated": ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 4, 6, 1),
    "1x1": ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 4, 6, 1),
    "1x1 strided": ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 4, 6, 1),
    "depthwise": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6, 6, 6),
    "depthwise strided": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 6, 6, 6),
    "grouped 1x1": ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 6, 4, 2),
    "grouped 3x3": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 6, 4, 2),
    "7x7": ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 3, 5, 1),
    "patches": ((4, 4), (4, 4), "VALID", (1, 1), 3, 5, 1),
    "uneven": ((3, 5), (1, 2), ((0, 2), (1, 0)), (1, 1), 3, 4, 1),
}


@pytest.mark.parametrize("batch", [16, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_gradients_and_second_derivatives_are_those_of_the_plain_form(kind, batch):
    kernel, strides, padding, dilation, channels, outputs, groups = KINDS[kind]
    options = {"rhs_dilation": dilation, "dimension_numbers": NHWC, "feature_group_count": groups}
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        images = generator.normal(size=(batch, 9, 10, channels))
        weights = generator.normal(size=(*kernel, channels // groups, outputs))
        forms = [
            lambda x, w, f=f: f(x, w, strides, padding, **options) for f in (convolution, lax.conv_general_dilated)
        ]
        cotangent = generator.normal(size=forms[1](images, weights).shape)
        found, expected = ([form(images, weights), *_gradients(form, images, weights, cotangent)] for form in forms)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max())


def _gradients(form, images, weights, cotangent):
    def loss(x, w):
        return jnp.sum(form(x, w) ** 2 * cotangent)

    def second(x, w):
        return sum(jnp.sum(part**2) for part in jax.grad(loss, (0, 1))(x, w))

    return jax.jit(lambda x, w: (*jax.grad(loss, (0, 1))(x, w), *jax.grad(second, (0, 1))(x, w)))(images, weights)


def test_a_network_takes_them_inside_the_context_alone():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3))(nn.Conv(8, (1, 1))(x)).sum()

    net, x = Net(), jnp.ones((8, 6, 6, 3))
    variables = net.init(jax.random.key(0), x)

    def slope(platform):
        def loss(v):
            with convolutions_for(platform):
                return net.apply(v, x)

        return jax.grad(loss)(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slope("cpu"), slope("gpu"))
    primal, tangent = jax.jvp(lambda x: net.apply(variables, x), (x,), (x,))  # forward mode, outside of the context
    assert primal.shape == tangent.shape == ()
