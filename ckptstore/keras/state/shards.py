"""Shards of a JAX array: its parts on the single devices of a process; and arrays placed as others are.

JAX itself makes one array of the shards in a single thread, and keeps it until the array is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptstore.system.arrays import Array

Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of an array, held by one device.

    Attributes:
        number: Its number, as `jax.Array.addressable_data` counts.
        index: Its place in the whole array.
    """

    number: int
    index: Index


def described_sharding(sharding: Any, rank: int) -> dict[str, Any] | None:
    """Return how an array lies on devices as JSON; None where its sharding names no axes.

    Args:
        sharding: The sharding of an array of JAX, or None.
        rank: The array's number of dimensions.
    """
    mesh, spec = getattr(sharding, "mesh", None), getattr(sharding, "spec", None)
    if mesh is None or spec is None:
        return None
    names = [axes if axes is None or isinstance(axes, str) else [str(axis) for axis in axes] for axes in spec]
    sizes = {str(name): int(size) for name, size in mesh.shape.items()}
    return {"axes": sizes, "spec": [*names, *[None] * (rank - len(names))]}


def holders_of(value: Any) -> dict[tuple[tuple[int, ...], tuple[int, ...]], set[int]]:
    """Return the processes that hold each part of an array of JAX, by the part's first indices and its stop indices.

    It asks no device and no other process, and is the same on every process.
    """
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], set[int]] = {}
    for device, index in value.sharding.devices_indices_map(value.shape).items():
        bounds = [part.indices(size)[:2] for part, size in zip(index, value.shape, strict=True)]
        start, stop = tuple(first for first, _ in bounds), tuple(last for _, last in bounds)
        found.setdefault((start, stop), set()).add(int(device.process_index))
    return found


def is_on_several_devices(value: Any) -> bool:
    """Return True for an array of JAX that several devices of this process hold: in parts, or each all of it."""
    sharding = getattr(value, "sharding", None)
    # What other processes hold cannot be read here; numpy says so.
    return sharding is not None and len(sharding.device_set) > 1 and bool(sharding.is_fully_addressable)


def unique_shards(value: Any) -> list[Shard]:
    """Return the shards that make up an array, each once where several devices hold the same one.

    Args:
        value: An array of JAX all of whose shards are in this process.

    Raises:
        RuntimeError: The array was deleted, such as by a step that it was donated to.
    """
    if value.is_fully_replicated:
        return [Shard(0, (slice(None),) * value.ndim)]
    return [
        Shard(number, shard.index)
        for number, shard in enumerate(value.addressable_shards)
        if shard.replica_id == 0
    ]


def placed_like(live: Any, value: Any) -> Any:
    """Return an array of JAX on the devices of a live one; one that nobody has placed stays so.

    Args:
        live: The array whose place is kept, or anything else.
        value: An array of JAX, or anything else, which is returned unchanged.
    """
    sharding = getattr(live, "sharding", None)
    if sharding is None or not getattr(live, "committed", True) or not hasattr(value, "sharding"):
        return value
    import jax

    return jax.device_put(value, sharding)


def sharded_array(value: Any) -> Array:
    """Return an array of several devices in host memory; a view if each device holds all of it, and numpy can view it.

    Raises:
        RuntimeError: The array was deleted.
    """
    shards = unique_shards(value)
    parts = [value.addressable_data(shard.number) for shard in shards]
    for part in parts:
        part.copy_to_host_async()
    if value.is_fully_replicated:
        return np.asarray(parts[0], order="C")
    whole = np.empty(value.shape, value.dtype)
    for shard, part in zip(shards, parts, strict=True):
        whole[shard.index] = part
    return whole
