"""Devices: the only file that says pmap, where arrays are placed, and which part of a batch is whose.


With several processes (see `kdjax.training.processes`) each of them has as many devices as the others. A batch is dealt
out in the order of the processes and, within one, of its devices, which is the order of pmap's axis.
"""

import functools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.data.keeping import host_memory
from kdjax.errors import UserError
from kdjax.training import processes
from kdjax.types import Device

AXIS = "devices"


def local_devices() -> tuple[Device, ...]:
    """Returns the devices of this process, and starts jax's backend if it is not started yet.

    Raises:
      UserError: jax cannot start the backend; the message names JAX_PLATFORMS.
    """
    try:
        return tuple(jax.local_devices())
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split()) or "there is no such device here"
        raise UserError(
            f"jax cannot use JAX_PLATFORMS={asked!r} ({reason}); unset it, or set it to a platform that this machine "
            "and the installed jax have, such as JAX_PLATFORMS=cpu."
        ) from error


def data_parallel(body: Callable, devices: Sequence[Device], donate_argnums: tuple[int, ...] = ()) -> Callable:
    """Compiles a per-device body `(replicated, replicated, mapped) -> replicated` over the devices of all processes.

    The un-stacked form: replicated arguments and results have no device axis. The body must reduce every output over
    `AXIS`; pmap returns the first device's value in silence where it did not, so every body is also tested under
    `jax.vmap(axis_name=AXIS)`, which raises.

    Args:
      body: Function that names the axis `AXIS` in its collectives.
      devices: Devices of this process; all of them if there are several processes.
      donate_argnums: Arguments whose buffers the call may reuse; they must have come from `replicate`.

    Raises:
      UserError: There are several processes and `devices` are not all of this one.
    """
    several = processes.count() > 1
    if several and list(devices) != jax.local_devices():
        raise UserError("with several processes all devices of each must be used; leave `devices` out.")
    return jax.pmap(
        body,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        # With the devices of one process here, several would each train alone, in silence.
        devices=None if several else list(devices),
        donate_argnums=donate_argnums,
    )


def device_count(devices: Sequence[Device]) -> int:
    """Returns the number of devices of all processes.

    Args:
      devices: Devices of this process.
    """
    return len(devices) * processes.count()


def replicate(tree: Any, devices: Sequence[Device]) -> Any:
    """Places every leaf of `tree` on all `devices`; the result owns its buffers and may be donated."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    # A copy, since on CPU a device array may otherwise share the memory of the NumPy array it was made from.
    return jax.device_put(jax.tree.map(np.array, tree), sharding)


def own_share(array: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns this process's part of an array with a batch axis: all of it if there is one process."""
    if processes.count() == 1:
        return array
    return np.split(array, processes.count(), axis)[processes.index()]


def deal(array: np.ndarray, devices: Sequence[Device]) -> np.ndarray:
    """Deals this process's part of a batch, `[steps, batch, ...]`, to its devices: `[devices, steps, ...]`."""
    steps, batch, *rest = array.shape
    return np.moveaxis(array.reshape(steps, len(devices), batch // len(devices), *rest), 1, 0)


def split(array: np.ndarray, devices: Sequence[Device]) -> np.ndarray:
    """Returns what this process's devices get of a batch, `[steps, batch, ...]`: `[devices, steps, ...]`."""
    return deal(own_share(array), devices)


def memory(devices: Sequence[Device]) -> int:
    """Returns the bytes of memory of the smallest device of all processes; emulated devices share their host's."""
    return min(processes.gather(_own_memory(devices)))


def _own_memory(devices: Sequence[Device]) -> int:
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in one for one in stats):
        return min(one["bytes_limit"] for one in stats)
    return host_memory() // len(devices)


def check_batch_size(field: str, batch_size: int, devices: Sequence[Device]) -> None:
    """Refuses a batch that cannot be divided evenly among the devices.

    Raises:
      UserError: names the field and two sizes that work.
    """
    count = device_count(devices)
    if batch_size % count:
        below = batch_size // count * count
        raise UserError(
            f"config.{field}={batch_size} is not a multiple of the {count} devices; "
            f"use {below or count} or {below + count}, or fewer devices."
        )


def to_host(tree: Any) -> Any:
    """Copies a replicated tree into NumPy arrays that no later donation can touch."""
    return jax.tree.map(np.array, jax.device_get(tree))


def check_same_everywhere(tree: Any, what: str) -> None:
    """Refuses to go on if a replicated tree is not the same, to the bit, on all devices of all processes.

    pmap returns the first device's value of each process and says nothing if another device has another one.

    Raises:
      RunError: names the processes that differ from process 0.
    """
    leaves = jax.tree.leaves(tree)
    copies = [[np.asarray(shard.data) for shard in leaf.addressable_shards] for leaf in leaves]
    marks = [functools.reduce(lambda crc, part: zlib.crc32(part.tobytes(), crc), copy, 0) for copy in zip(*copies)]
    processes.compare(sorted(set(marks)), what)
