"""Copying the values of many variables to host memory at once, so that a training step waits for a single copy.

All copies from a device are started before the first is waited for. Values that are still being computed are waited
for, so that the copy is the state of one instant, after the last step that was started. Several cores copy together
where one alone would not use the full bandwidth of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ckptstore.keras.model.copy_jax import JaxCopies
from ckptstore.keras.model.copy_torch import TorchCopies
from ckptstore.keras.private import raw_values
from ckptstore.keras.state.arrays import host_array
from ckptstore.system.arrays import Array
from ckptstore.system.parallel_copy import ParallelCopy

# Number of target lists that are remembered; each is a slot for snapshots.
_SLOTS = 4

_Copies = JaxCopies | TorchCopies


class Copier:
    """Copies the same variables again and again, each time into one of a few lists of targets.

    Args:
        values: Keras variables, or other values that `ckptstore.keras.state.arrays.host_array` accepts.
        shards: For each value the number of the shard of this process that is copied instead of all of it, for an
            array of JAX that several processes share, or None; by default None for all.

    Attributes:
        values: The same values.

    Example:
        >>> value, target = np.array([1.0, 2.0]), np.zeros(2)
        >>> copier = Copier([value])
        >>> copier([target])
        >>> target.tolist()
        [1.0, 2.0]
    """

    def __init__(self, values: Sequence[Any], shards: Sequence[int | None] = ()) -> None:
        # A layer may save a plain number, or a list.
        self.values = tuple(value if hasattr(value, "shape") else np.asarray(value) for value in values)
        self._shards = shards if any(shard is not None for shard in shards) else ()
        self._parallel_copy = ParallelCopy()
        # Prepared copies by id of the target list; the list is kept, so that no other has its id.
        self._known: dict[int, tuple[Sequence[Array], _Copies | None]] = {}

    def prepare(self, targets: Sequence[Array]) -> None:
        """Do the one-time work of the first copy into these targets, and lock their pages for a GPU.

        A thread may call this while training continues, if it returns before the next call with any targets.
        """
        self._copies(targets)

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy the present values; after it returns, the values are no longer read.

        Args:
            targets: An array for each value, of its shape and dtype, C-contiguous. Pass the same list again to reuse
                what was prepared for it.

        Raises:
            ValueError: A shape differs.
            TypeError: A dtype differs.
        """
        copies = self._copies(targets)
        if copies is not None:
            copies(self._raw(), self._parallel_copy)
            return
        for value, target in zip(self.values, targets, strict=True):
            np.copyto(target, host_array(value), casting="no")

    def _raw(self) -> list[Any]:
        raw = raw_values(self.values)
        if not self._shards:
            return raw
        return [
            value if shard is None else value.addressable_data(shard)
            for value, shard in zip(raw, self._shards, strict=True)
        ]

    def _copies(self, targets: Sequence[Array]) -> _Copies | None:
        """Return the copy function for these targets; None if there is none for the backend."""
        known = self._known.get(id(targets))
        if known is None:
            found: _Copies | None = None
            if keras.backend.backend() == "jax":
                found = JaxCopies(targets, threads=self._parallel_copy.threads)
            elif keras.backend.backend() == "torch":
                found = TorchCopies(targets, raw_values(self.values))
            known = targets, found
            if len(self._known) >= _SLOTS:
                self._known.clear()
            # A single operation, since a thread may prepare other targets meanwhile.
            self._known[id(targets)] = known
        return known[1]
