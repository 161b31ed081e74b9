"""Measures losses of a large vocabulary with their gradient: from logits, and from hidden states whole or by chunks."""

import functools
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.bench.results import Table
from kdjax.bench.timing import in_turn
from kdjax.types import Array

ROWS, CLASSES, WIDTH = 2048, 32_000, 256
HEADER = (
    f"loss of {ROWS} x {CLASSES}",
    "milliseconds for loss and gradient",
    "temporary memory in MiB",
    "temporaries and gradients in arrays of logits",
)

# Name -> loss of logits.
OF_LOGITS = {
    "kd": losses.kd,
    "ttm": functools.partial(losses.ttm, gamma=0.25),
    "wttm": functools.partial(losses.wttm, gamma=0.25),
    "jensen_shannon": losses.jensen_shannon,
}


def table(rounds: int, rows: int = ROWS, classes: int = CLASSES) -> Table:
    """Returns a table of times and memories; torch's forward divergence has a row where torch is installed.

    Args:
      rounds: Number of measurements, of which the median is shown.
      rows: Number of tokens.
      classes: Size of the vocabulary.
    """
    draw = np.random.default_rng(0)
    logits = [draw.normal(size=(rows, classes)).astype(np.float32) for _ in range(2)]
    shapes = ((rows, WIDTH), (WIDTH, classes))
    hidden = [(draw.normal(size=shape) / 16).astype(np.float32) for shape in shapes * 2]
    found = [_measured(name, loss, logits, 1, rounds) for name, loss in OF_LOGITS.items()]
    del logits
    found.append(_measured("forward_kl of hidden states, whole", _whole, hidden, 2, rounds))
    for chunk in (1024, 256):
        loss = functools.partial(_chunked, chunk=chunk)
        found.append(_measured(f"linear_divergence, chunk={chunk}", loss, hidden, 2, rounds))
    if importlib.util.find_spec("torch") is not None:
        found.append(_with_torch(hidden, rounds))
    return Table(HEADER, found)


def _whole(hidden: Array, kernel: Array, teacher_hidden: Array, teacher_kernel: Array) -> Array:
    return losses.forward_kl(hidden @ kernel, teacher_hidden @ teacher_kernel)


def _chunked(hidden: Array, kernel: Array, *teacher: Array, chunk: int) -> Array:
    return losses.linear_divergence(hidden, kernel, (teacher[0], teacher[1]), chunk=chunk)


def _measured(name: str, loss: Callable, arguments: Sequence, of: int, rounds: int) -> tuple[str, ...]:
    """Returns the row of a loss with its gradient for the first `of` arguments."""
    placed = jax.device_put(tuple(arguments))
    slope = jax.value_and_grad(lambda *given: jnp.mean(loss(*given)), argnums=tuple(range(of)))
    compiled = jax.jit(slope).lower(*placed).compile()
    seconds = statistics.median(in_turn({name: functools.partial(compiled, *placed)}, rounds)[name])
    memory = compiled.memory_analysis()
    if memory is None:
        return name, f"{1000 * seconds:.0f}", "-", "-"
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes
    whole = arguments[0].shape[0] * arguments[1].shape[1] * 4
    return name, f"{1000 * seconds:.0f}", f"{memory.temp_size_in_bytes / 2**20:.0f}", f"{held / whole:.2f}"


def _with_torch(hidden: Sequence[np.ndarray], rounds: int) -> tuple[str, ...]:
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    student, kernel, teacher, teacher_kernel = (torch.from_numpy(part) for part in hidden)

    def run() -> list[np.ndarray]:
        inputs = [part.clone().requires_grad_() for part in (student, kernel)]
        log_q, log_p = (functional.log_softmax(z, -1) for z in (inputs[0] @ inputs[1], teacher @ teacher_kernel))
        value = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return [slope.numpy() for slope in torch.autograd.grad(value, inputs)]

    seconds = statistics.median(in_turn({"torch": run}, rounds)["torch"])
    return "torch's kl_div of hidden states, whole", f"{1000 * seconds:.0f}", "-", "-"
