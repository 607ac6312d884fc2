"""Devices and processes: the one mesh, its two shardings, and how host rows become a global batch."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vae_jax.config import UserError


def make(count: int = 0) -> Mesh:
    """One axis `data` over the first `count` devices of all processes (0 = all).

    Auto, because the default (Explicit) axis type refuses plain reshapes such as sub-pixel upsampling.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))  # a process's rows must lie together: see own_rows
    if count > len(devices):
        raise UserError(f"config.run.devices={count}, but there are {len(devices)} devices here.")
    if count and jax.process_count() > 1 and count != len(devices):
        raise UserError("config.run.devices may only limit a run of one process; leave it 0 here.")
    return Mesh(np.array(devices[: count or len(devices)]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def round_up(mesh: Mesh, batch: int) -> int:
    """The next batch size that divides over the devices."""
    return -(-batch // mesh.size) * mesh.size


def own_rows(batch: int) -> slice:
    """Which rows of a global batch this process feeds: processes hold equal, consecutive parts."""
    part = batch // jax.process_count()
    return slice(jax.process_index() * part, (jax.process_index() + 1) * part)


def to_global(mesh: Mesh, local: dict) -> dict:
    """This process's rows {name: array} as global arrays split over the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(local, batched(mesh))  # the same, in half the time
    return {k: jax.make_array_from_process_local_data(batched(mesh), v) for k, v in local.items()}


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return jax.process_index() == 0
