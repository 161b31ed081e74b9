"""Devices: the only file that says pmap, and where arrays are placed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.data.keeping import host_memory
from kdjax.errors import UserError
from kdjax.types import Device

AXIS = "devices"


def data_parallel(body: Callable, devices: Sequence[Device], donate_argnums: tuple[int, ...] = ()) -> Callable:
    """Compiles a per-device body `(replicated, replicated, mapped) -> replicated` over `devices`.

    The un-stacked form: replicated arguments and results have no device axis. The body must reduce every output over
    `AXIS`; pmap returns the first device's value in silence where it did not, so every body is also tested under
    `jax.vmap(axis_name=AXIS)`, which raises.

    Args:
      body: Function that names the axis `AXIS` in its collectives.
      devices: Devices of this process.
      donate_argnums: Arguments whose buffers the call may reuse; they must have come from `replicate`.
    """
    return jax.pmap(
        body,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=list(devices),
        donate_argnums=donate_argnums,
    )


def replicate(tree: Any, devices: Sequence[Device]) -> Any:
    """Places every leaf of `tree` on all `devices`; the result owns its buffers and may be donated."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    # A copy, since on CPU a device array may otherwise share the memory of the NumPy array it was made from.
    return jax.device_put(jax.tree.map(np.array, tree), sharding)


def split(array: np.ndarray, devices: Sequence[Device]) -> np.ndarray:
    """Splits the batch axis of `[steps, batch, ...]` over the devices: `[devices, steps, batch / devices, ...]`."""
    steps, batch, *rest = array.shape
    return np.moveaxis(array.reshape(steps, len(devices), batch // len(devices), *rest), 1, 0)


def memory(devices: Sequence[Device]) -> int:
    """Returns the bytes of memory of the smallest of `devices`; emulated devices share the host's."""
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in one for one in stats):
        return min(one["bytes_limit"] for one in stats)
    return host_memory() // len(devices)


def check_batch_size(field: str, batch_size: int, devices: Sequence[Device]) -> None:
    """Refuses a batch that cannot be divided evenly among the devices.

    Raises:
      UserError: names the field and two sizes that work.
    """
    if batch_size % len(devices):
        below = batch_size // len(devices) * len(devices)
        raise UserError(
            f"config.{field}={batch_size} is not a multiple of the {len(devices)} devices; "
            f"use {below or len(devices)} or {below + len(devices)}, or fewer devices."
        )


def to_host(tree: Any) -> Any:
    """Copies a replicated tree into NumPy arrays that no later donation can touch."""
    return jax.tree.map(np.array, jax.device_get(tree))
