"""Measures convolutions with their gradients: the forms of kdjax/models/convolution.py beside the plain ones."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from kdjax.bench.results import Table, publish
from kdjax.bench.timing import in_turn, machine
from kdjax.models.convolution import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
HEADER = ("convolution", "plain, ms", "kdjax, ms", "speed, median", "speed, fastest rounds")
BATCH = 64


class Kind(NamedTuple):
    """A convolution of the networks: side of the image, input and output channels, kernel, stride and groups."""

    side: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


KINDS = {
    "3x3, 16 channels at 32x32": Kind(32, 16, 16),
    "3x3, 32 channels at 16x16": Kind(16, 32, 32),
    "3x3, 64 channels at 8x8": Kind(8, 64, 64),
    "3x3, 128 channels at 16x16": Kind(16, 128, 128),
    "3x3, 16 to 32 channels, strided": Kind(32, 16, 32, stride=2),
    "1x1, 64 channels at 16x16": Kind(16, 64, 64, kernel=1),
    "3x3 depthwise, 64 channels at 16x16": Kind(16, 64, 64, groups=64),
    "1x1 in 3 groups, 60 to 240 channels": Kind(16, 60, 240, kernel=1, groups=3),
}


def show(flag: flags.FlagValues) -> None:
    """Prints the table that the command's flags ask for."""
    publish(flag, machine(), table(flag.rounds, flag.steps))


def table(rounds: int, calls: int) -> Table:
    """Returns the time of each kind of convolution with both its gradients, for a batch of 64 in float32.

    Args:
      rounds: Number of measurements, in each of which all forms are measured in turn.
      calls: Number of calls in one measurement.
    """
    forms = {"plain": lax.conv_general_dilated, "kdjax": convolution}
    runs = {(name, form): _runner(kind, forms[form]) for name, kind in KINDS.items() for form in forms}
    seconds = in_turn(runs, rounds, calls)
    return Table(HEADER, [_row(name, seconds) for name in KINDS])


def _row(name: str, seconds: dict[tuple[str, str], list[float]]) -> tuple:
    plain, own = seconds[name, "plain"], seconds[name, "kdjax"]
    median = statistics.median(a / b for a, b in zip(plain, own, strict=True))
    times = (f"{1000 * statistics.median(each):.2f}" for each in (plain, own))
    return name, *times, f"{median:.2f}", f"{min(plain) / min(own):.2f}"


def _runner(kind: Kind, form: Callable[..., Any]) -> Callable[[], Any]:
    generator, pad = np.random.default_rng(0), kind.kernel // 2
    images = generator.normal(size=(BATCH, kind.side, kind.side, kind.channels)).astype(np.float32)
    shape = (kind.kernel, kind.kernel, kind.channels // kind.groups, kind.outputs)
    weights = generator.normal(size=shape).astype(np.float32)
    options = {"dimension_numbers": NHWC, "feature_group_count": kind.groups}

    @jax.jit
    def gradients(x: Any, w: Any) -> Any:
        def loss(x: Any, w: Any) -> Any:
            return jnp.sum(form(x, w, (kind.stride,) * 2, ((pad, pad),) * 2, **options) ** 2)

        return jax.grad(loss, (0, 1))(x, w)

    placed = jax.device_put((images, weights))
    return lambda: gradients(*placed)
