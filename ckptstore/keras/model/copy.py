"""Copies the values of many variables to host memory at once, so that a training step waits for one copy alone.

All copies from a device are on their way before the first is waited for. A value that is still being computed is
waited for: what is copied is the state of one instant, after the last step that was begun. Several cores copy where
one would not use all that the memory can do.
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

# As many lists of targets are known as there are places.
_PLACES = 4

_Copies = JaxCopies | TorchCopies


class Copier:
    """Copies the same variables again and again, each time into one of few places.

    Args:
        values: Keras variables, or what `ckptstore.keras.state.arrays.host_array` takes.

    Attributes:
        values: The same.

    Example:
        >>> value, target = np.array([1.0, 2.0]), np.zeros(2)
        >>> copier = Copier([value])
        >>> copier([target])
        >>> target.tolist()
        [1.0, 2.0]
    """

    def __init__(self, values: Sequence[Any]) -> None:
        # A layer may save a plain number, or a list.
        self.values = tuple(value if hasattr(value, "shape") else np.asarray(value) for value in values)
        self._parallel_copy = ParallelCopy()
        # What is known of targets, by their identity; they are kept, so that it is no other's.
        self._known: dict[int, tuple[Sequence[Array], _Copies | None]] = {}

    def prepare(self, targets: Sequence[Array]) -> None:
        """Work out what the first copy into these targets would have to, and lock their pages for a GPU.

        A thread may do it while training goes on, if it has done it when the next call for any targets comes.
        """
        self._copies(targets)

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy the present values; when it returns, none of them is looked at any more.

        Args:
            targets: One array for each, of its shape and dtype, C-contiguous. A list that comes again is known.

        Raises:
            ValueError: A shape is another.
            TypeError: A dtype is another.
        """
        copies = self._copies(targets)
        if copies is not None:
            copies(raw_values(self.values), self._parallel_copy)
            return
        for value, target in zip(self.values, targets, strict=True):
            np.copyto(target, host_array(value), casting="no")

    def _copies(self, targets: Sequence[Array]) -> _Copies | None:
        """Return what copies into these targets; None where nothing is known of the backend."""
        known = self._known.get(id(targets))
        if known is None:
            found: _Copies | None = None
            if keras.backend.backend() == "jax":
                found = JaxCopies(targets, threads=self._parallel_copy.threads)
            elif keras.backend.backend() == "torch":
                found = TorchCopies(targets, raw_values(self.values))
            known = targets, found
            if len(self._known) >= _PLACES:
                self._known.clear()
            # One step, since a thread may prepare other targets meanwhile.
            self._known[id(targets)] = known
        return known[1]
