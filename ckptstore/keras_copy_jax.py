"""How JAX's arrays come into host memory: small ones straight into shared memory, large ones in pieces.

By the buffer protocol: of a thousand copies, a seventh of the time went into making a numpy array of each.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptstore.background.side_by_side import Job, SideBySide, copies
from ckptstore.formats.snapshot import Array
from ckptstore.keras_copy_check import Expected

# Bytes from which on numpy copies an array in pieces.
_LARGE = 1 << 20


class JaxCopies:
    """Copies arrays into the same places again and again.

    Args:
        targets: One array for each value, of its dtype and shape, C-contiguous.
    """

    def __init__(self, targets: Sequence[Array]) -> None:
        self._targets = targets
        self._expected = Expected.like(targets)
        # Of the values that were last found to be so, what JAX knows of each; a step returns the same again.
        self._kinds: list[Any] | None = None
        self._large = [place for place, target in enumerate(targets) if target.nbytes >= _LARGE]
        self._nbytes = sum(targets[place].nbytes for place in self._large)
        self._mapped, self._others = _apart(targets)

    def __call__(self, values: Sequence[Any], side_by_side: SideBySide) -> None:
        """Copy values; those that are being computed are waited for.

        Raises:
            TypeError: A dtype is another.
            ValueError: A shape is another.
        """
        _ask_devices(values)
        self._check(values)
        for part in self._mapped:
            part([values[place] for place in part.places])
        for place in self._others:
            self._targets[place][...] = values[place]
        large: list[Job] = []
        for place in self._large:
            large += copies(self._targets[place], np.asarray(values[place]))
        side_by_side(large, nbytes=self._nbytes)

    def _check(self, values: Sequence[Any]) -> None:
        # A thousand dtypes and shapes take 0.3 ms to ask for.
        kinds = [getattr(value, "aval", None) for value in values]
        if kinds != self._kinds or None in kinds:
            self._expected.check(values)
            self._kinds = kinds


def _ask_devices(values: Sequence[Any]) -> None:
    """Have all copies from devices on their way; arrays in host memory are looked at where they lie."""
    import jax

    if jax.default_backend() == "cpu":
        return
    for value in values:
        if isinstance(value, jax.Array) and next(iter(value.devices())).platform != "cpu":
            value.copy_to_host_async()


@dataclass(slots=True, kw_only=True)
class _Mapped:
    """Small targets in one piece of shared memory.

    Attributes:
        memory: What they lie in; None once one value was found that is no buffer, such as one of several devices.
        parts: Where each lies.
        targets: The same as arrays.
        places: Which of all targets they are.
    """

    memory: mmap.mmap | None
    parts: list[slice]
    targets: list[Array]
    places: list[int]

    def __call__(self, values: Sequence[Any]) -> None:
        """Copy values of their shapes and dtypes."""
        if self.memory is not None:
            try:
                deque(map(self.memory.__setitem__, self.parts, values), maxlen=0)
                return
            # The last is what numpy has for an array that is not in C order.
            except (BufferError, TypeError, ValueError):
                self.memory = None
        for target, value in zip(self.targets, values, strict=True):
            target[...] = value


def _apart(targets: Sequence[Array]) -> tuple[list[_Mapped], list[int]]:
    """Return small targets that lie in shared memory, and the places of small ones that numpy has to copy."""
    mapped: dict[int, _Mapped] = {}
    others: list[int] = []
    for place, target in enumerate(targets):
        if target.nbytes >= _LARGE:
            continue
        memory: Any = target.base
        # bfloat16 and its like are no dtypes of numpy's own, and none of buffers.
        if not isinstance(memory, mmap.mmap) or target.dtype.isbuiltin != 1 or not target.flags.c_contiguous:
            others.append(place)
            continue
        part = mapped.setdefault(id(memory), _Mapped(memory=memory, parts=[], targets=[], places=[]))
        begin = target.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
        part.parts.append(slice(begin, begin + target.nbytes))
        part.targets.append(target)
        part.places.append(place)
    return list(mapped.values()), others
