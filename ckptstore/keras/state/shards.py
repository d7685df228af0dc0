"""Shards of a JAX array: its parts on the single devices of a process; and arrays placed as others are.

JAX itself makes one array of the shards in a single thread, and keeps it until the array is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import sub
from typing import Any

import numpy as np

from ckptstore.errors import SplitValueError
from ckptstore.system.arrays import Array

Index = tuple[slice, ...]
# First indices of a part of an array, and the indices after its last.
Bounds = tuple[tuple[int, ...], tuple[int, ...]]


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


def holders_of(value: Any) -> dict[Bounds, set[int]]:
    """Return the processes that hold each part of an array of JAX, by the part's bounds.

    It asks no device and no other process, and is the same on every process.
    """
    found: dict[Bounds, set[int]] = {}
    for device, index in value.sharding.devices_indices_map(value.shape).items():
        found.setdefault(bounds_of(index, value.shape), set()).add(int(device.process_index))
    return found


def bounds_of(index: Index, shape: Sequence[int]) -> Bounds:
    """Return the bounds of a part of an array of a shape.

    Example:
        >>> bounds_of((slice(2, 4), slice(None)), (4, 3))
        ((2, 0), (4, 3))
    """
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return tuple(first for first, _ in bounds), tuple(last for _, last in bounds)


def local_bounds(sharding: Any, shape: Sequence[int]) -> list[Bounds]:
    """Return the bounds of the parts that this process's devices hold of an array, each once."""
    places = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return list(dict.fromkeys(bounds_of(index, shape) for index in places))


def part_of(whole: Array, bounds: Bounds) -> Array:
    """Return a part of an array as a view."""
    places: tuple[Any, ...] = tuple(map(slice, *bounds))
    part: Array = whole[(*places, ...)]  # of a scalar too
    return part


def local_shards(value: Any) -> dict[Bounds, Shard]:
    """Return the shards of an array of JAX that this process holds, each once, by their bounds.

    Raises:
        RuntimeError: The array was deleted, such as by a step that it was donated to.
    """
    if value.is_fully_replicated:
        return {((0,) * value.ndim, tuple(value.shape)): Shard(0, (slice(None),) * value.ndim)}
    found: dict[Bounds, Shard] = {}
    for number, shard in enumerate(value.addressable_shards):
        found.setdefault(bounds_of(shard.index, value.shape), Shard(number, shard.index))
    return found


def spans_processes(value: Any) -> bool:
    """Return True for an array of JAX of which other processes hold devices, too."""
    sharding = getattr(value, "sharding", None)
    return sharding is not None and not sharding.is_fully_addressable


def is_on_several_devices(value: Any) -> bool:
    """Return True for an array of JAX that several devices hold: in parts, or each all of it."""
    sharding = getattr(value, "sharding", None)
    return sharding is not None and len(sharding.device_set) > 1


def unique_shards(value: Any) -> list[Shard]:
    """Return the shards that make up an array, each once where several devices hold the same one.

    Args:
        value: An array of JAX. Of one that other processes share, this one must hold every element.

    Raises:
        SplitValueError: This process holds only some of its parts.
        RuntimeError: The array was deleted, such as by a step that it was donated to.
    """
    found = local_shards(value)
    if not value.is_fully_addressable and sum(map(_size, found)) < value.size:
        raise SplitValueError(where="", shape=tuple(value.shape), parts=len(holders_of(value)))
    return list(found.values())


def _size(bounds: Bounds) -> int:
    start, stop = bounds
    return prod(map(sub, stop, start))


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

    # Of random keys JAX itself makes the parts; all processes wait for each other then.
    if not sharding.is_fully_addressable and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return spread(value, sharding)
    return jax.device_put(value, sharding)


def array_of_parts(shape: Sequence[int], sharding: Any, read: Callable[[Bounds], Array]) -> Any:
    """Return an array of JAX made of what this process reads for its devices; asks no other process.

    Args:
        shape: The array's shape.
        sharding: Where it is to lie; other processes may hold other parts, or the same.
        read: Returns a part in host memory; called once for parts that several devices hold. JAX may keep using that
            memory.
    """
    import jax

    known: dict[Bounds, Array] = {}
    parts, places = [], []
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        bounds = bounds_of(index, shape)
        if bounds not in known:
            known[bounds] = read(bounds)
        parts.append(known[bounds])
        places.append(jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind))
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, jax.device_put(parts, places))


def spread(value: Any, sharding: Any) -> Any:
    """Return an array of JAX with a sharding, from all of its values, which each process has; asks no other process."""
    whole = np.asarray(value)
    return array_of_parts(whole.shape, sharding, partial(part_of, whole))


def sharded_array(value: Any) -> Array:
    """Return an array of several devices in host memory; a view if each device holds all of it, and numpy can view it.

    Raises:
        SplitValueError: Other processes hold some of its parts, and this one does not.
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
