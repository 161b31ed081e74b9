"""Measures a step of KD beside the same step in PyTorch: python -m kdjax.bench rival.

Both programs run in one process and are measured in turn. PyTorch's step gets its images ready-made on the device;
kdjax's, which is the step of a training run, also gathers, crops, flips and normalises them, and sums its metrics.
"""

import importlib.util
import os
import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from absl import flags

from kdjax.bench.pairs import (
    CLASSES,
    KD_WEIGHT,
    LABELS_WEIGHT,
    MOMENTUM,
    RATE,
    SIDE,
    TEMPERATURE,
    WEIGHT_DECAY,
    Pair,
    make_plans,
    parse,
)
from kdjax.bench.results import Table, publish
from kdjax.bench.step import stepping
from kdjax.bench.timing import in_turn, machine
from kdjax.bench.torch_networks import network
from kdjax.errors import UserError
from kdjax.training.population import Population

PAIRS = (Pair("resnet20", "resnet8"), Pair("wrn_40_2", "wrn_16_2"))
BATCH = 64
PLAIN, CHANNELS_LAST, COMPILED = "torch, plain", "torch, channels_last", "torch, channels_last, compiled"
HEADER = ("pair", "program", "milliseconds per step", f"time / {CHANNELS_LAST}, median", "fastest rounds")


def show(flag: flags.FlagValues) -> None:
    """Prints the table of the pairs that the command's flags name, each as soon as it is measured."""
    check_torch()
    # Read when torch is loaded. By default its threads wait for one another in a busy loop; where other programs use
    # the cores too, that took many times as long as its work, and kdjax looked faster than it is. On a quiet machine
    # OMP_WAIT_POLICY=ACTIVE may be the fairer choice.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    pairs, rows = parse(flag.only, PAIRS), []
    for pair in pairs:
        rows += table_rows(pair, flag.rounds, flag.steps)
        print("\n".join(" | ".join(map(str, row)) for row in rows[-4:]), flush=True)
    print()
    waiting = f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}"
    note = f"{machine()}, torch {_torch().__version__}, {waiting}; KD, batch {BATCH}, float32"
    publish(flag, note, Table(HEADER, rows, keys=2))


def table_rows(pair: Pair, rounds: int, num_steps: int) -> list[tuple]:
    """Returns a row for kdjax on one device and on all, and for each form of PyTorch.

    Args:
      pair: Teacher and student.
      rounds: Number of measurements. In each of them, all programs are measured in turn.
      num_steps: Number of train steps in one measurement.
    """
    devices = jax.local_devices()
    runs: dict[str, Callable[[], Any]] = {}
    for count in sorted({1, len(devices)}):
        plans = make_plans(pair, BATCH, "float32", 1, BATCH * num_steps, devices[:count])
        runs[f"kdjax, {count} device{'s' * (count > 1)}"] = stepping(Population(plans), num_steps)
    for form in (PLAIN, CHANNELS_LAST):
        runs[form] = torch_step(pair, BATCH, "float32", form, num_steps)
    seconds = in_turn(runs, rounds)
    return [(str(pair), name, *_against(seconds, name, num_steps)) for name in runs]


def _against(seconds: Mapping[Hashable, list[float]], name: str, num_steps: int) -> tuple[str, str, str]:
    own, rival = seconds[name], seconds[CHANNELS_LAST]
    median = statistics.median(a / b for a, b in zip(own, rival, strict=True))
    milliseconds = 1000 * statistics.median(own) / num_steps
    return f"{milliseconds:.1f}", f"{median:.2f}", f"{min(own) / min(rival):.2f}"


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def check_torch() -> None:
    """Refuses to go on without torch.

    Raises:
      UserError: The message says how to install it.
    """
    if not has_torch():
        raise UserError(
            "torch is not installed, which kdjax is measured beside; install it: pip install 'kdjax[torch]'"
        )


def _torch() -> Any:
    import torch

    return torch


def torch_step(pair: Pair, batch_size: int, dtype: str, form: str, num_steps: int) -> Callable[[], Any]:
    """Returns a function that makes `num_steps` updates of KD in PyTorch, on its GPU if it has one.

    Args:
      pair: Teacher and student.
      batch_size: Images in a batch.
      dtype: 'float32' (with TF32 on a GPU, as jax computes there), or 'bfloat16' by autocast.
      form: PLAIN, CHANNELS_LAST or COMPILED; the last one records CUDA graphs on a GPU.
      num_steps: Number of updates in one call.
    """
    torch = _torch()
    functional, device = torch.nn.functional, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, True
    torch.backends.cuda.matmul.allow_tf32 = True
    layout = torch.contiguous_format if form == PLAIN else torch.channels_last
    teacher, student = (network(name, CLASSES).to(device, memory_format=layout) for name in pair)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    images = torch.randn(batch_size, 3, SIDE, SIDE, device=device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (batch_size,), device=device)

    def objective() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            with torch.no_grad():
                taught = teacher(images)
            logits = student(images)
        found, wanted = (functional.log_softmax(each.float() / TEMPERATURE, 1) for each in (logits, taught))
        divergence = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        own = functional.cross_entropy(logits.float(), labels)
        return LABELS_WEIGHT * own + KD_WEIGHT * TEMPERATURE**2 * divergence

    compiled = torch.compile(objective, mode="reduce-overhead") if form == COMPILED else objective

    def run() -> tuple:
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            compiled().backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return ()

    return run
