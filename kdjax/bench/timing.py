"""Measuring time: what is compared is measured in turn, so that a slow moment of the machine meets all alike."""

import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax

from kdjax.training.manifest import versions

Key = TypeVar("Key", bound=Hashable)


def in_turn(runs: Mapping[Key, Callable[[], object]], rounds: int, calls: int = 1) -> dict[Key, list[float]]:
    """Calls every function once, so that it is compiled, and then measures all of them in every round.

    Args:
      runs: Name -> function. The arrays that it returns are waited for.
      rounds: Number of measurements of each function.
      calls: Number of calls in one measurement.

    Returns:
      Name -> seconds per call, in each round.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(run())
            seconds[name].append((time.perf_counter() - began) / calls)
    return seconds


def machine() -> str:
    """Returns a line with the processor, the number of cores, the backend and the versions."""
    found = versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "jax", "flax", "numpy"))
    kind = jax.devices()[0].device_kind
    return f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} ({kind}), {packages}"
