"""Plan of a copy from several devices: which shards are copied, each to its place in the target of the whole array.

Of equal shards one is copied; an array that every device holds is copied from one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptstore.keras.state.shards import Index, Shard, is_on_several_devices, unique_shards
from ckptstore.system.arrays import Array


class ShardPlan:
    """Sources and targets of single copies, for arrays of JAX with certain shardings.

    Args:
        values: The arrays, which may be on one device or on several.
        targets: A target for each, of its shape.

    Attributes:
        targets: For each source its target: a part of one of the given targets, or all of it.
        wholes: For each source, the index of its array among `values`.

    Example:
        >>> import jax, numpy as np
        >>> target = np.zeros(3)
        >>> plan = ShardPlan([jax.numpy.ones(3)], [target])
        >>> plan.targets[0] is target, plan.wholes
        (True, [0])
    """

    def __init__(self, values: Sequence[Any], targets: Sequence[Array]) -> None:
        self.targets: list[Array] = []
        self.wholes: list[int] = []
        # The number of the shard; None for an array of one device, which is copied itself.
        self._shards: list[int | None] = []
        known: dict[Any, list[Shard]] = {}
        for place, (value, target) in enumerate(zip(values, targets, strict=True)):
            if not is_on_several_devices(value):
                self._add(place, None, target)
                continue
            key = value.sharding, value.shape
            shards = known.setdefault(key, []) or unique_shards(value)
            known[key] = shards
            for shard in shards:
                self._add(place, shard.number, _part(target, shard.index))

    def _add(self, place: int, shard: int | None, target: Array) -> None:
        self.targets.append(target)
        self.wholes.append(place)
        self._shards.append(shard)

    def sources(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return what is copied to `targets`, for values of the same shardings.

        Raises:
            RuntimeError: An array was deleted.
        """
        return [
            values[place] if shard is None else values[place].addressable_data(shard)
            for place, shard in zip(self.wholes, self._shards, strict=True)
        ]


def _part(target: Array, index: Index) -> Array:
    """Return a part of a target; the target itself where that is all of it, so that its base stays the memory."""
    part: Array = target[index]
    return target if part.shape == target.shape else part


def shardings_of(values: Sequence[Any]) -> list[Any]:
    """Return the sharding of each value, or None for what is no array of JAX."""
    return [getattr(value, "sharding", None) for value in values]
