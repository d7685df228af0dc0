"""How JAX's arrays come into host memory: small ones straight into shared memory, large ones in pieces.

By the buffer protocol: of a thousand copies, a seventh of the time went into making a numpy array of each. Where there
is a second core, and enough to copy, it copies a part of the small ones, too.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from ckptstore.background.buffer_copies import BufferCopies, can_copy_buffers
from ckptstore.background.side_by_side import WORTH_A_THREAD, Job, SideBySide, copies
from ckptstore.formats.snapshot import Array
from ckptstore.keras_copy_check import Expected

# Bytes from which on numpy copies an array in pieces.
_LARGE = 1 << 20
# Bytes from which on the kernel copies an array in about the time that the loop here takes for it.
_PAGE = 1 << 12


class JaxCopies:
    """Copies arrays into the same places again and again.

    Args:
        targets: One array for each value, of its dtype and shape, C-contiguous.
        threads: As many copy at once as may.
    """

    def __init__(self, targets: Sequence[Array], *, threads: int) -> None:
        self._targets = targets
        self._expected = Expected.like(targets)
        # Of the values that were last found to be so, what JAX knows of each; a step returns the same again.
        self._kinds: list[Any] | None = None
        self._large = [place for place, target in enumerate(targets) if target.nbytes >= _LARGE]
        self._nbytes = sum(targets[place].nbytes for place in self._large)
        self._mapped, self._others = _apart(targets)
        self._divided = _divided(self._mapped, large=self._nbytes, threads=threads)

    def __call__(self, values: Sequence[Any], side_by_side: SideBySide) -> None:
        """Copy values; those that are being computed are waited for.

        Raises:
            TypeError: A dtype is another.
            ValueError: A shape is another.
        """
        _ask_devices(values)
        self._check(values)
        if self._divided is not None:
            own, shared = self._divided
            try:
                with shared.jobs(values) as jobs:
                    self._copy(values, side_by_side, own, jobs, shared.nbytes)
                return
            # One is no buffer here, or the kernel is not allowed to copy: the loop does it all, now and from now on.
            except (BufferError, OSError, TypeError, ValueError):
                self._divided = None
        self._copy(values, side_by_side, self._mapped, (), 0)

    def _copy(
        self,
        values: Sequence[Any],
        side_by_side: SideBySide,
        mapped: Sequence[_Mapped],
        jobs: Iterable[Job],
        nbytes: int,
    ) -> None:
        large: list[Job] = []
        for place in self._large:
            large += copies(self._targets[place], np.asarray(values[place]))
        own = partial(self._copy_small, values, mapped)
        side_by_side(chain(jobs, large), nbytes=nbytes + self._nbytes, own=own)

    def _copy_small(self, values: Sequence[Any], mapped: Sequence[_Mapped]) -> None:
        for part in mapped:
            part([values[place] for place in part.places])
        for place in self._others:
            self._targets[place][...] = values[place]

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

    def some(self, indices: Sequence[int]) -> _Mapped:
        """Return some of them."""
        return _Mapped(
            memory=self.memory,
            parts=[self.parts[index] for index in indices],
            targets=[self.targets[index] for index in indices],
            places=[self.places[index] for index in indices],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Small targets that any thread may have copied.

    Attributes:
        copies: Copies their values.
        places: Which of all targets they are.
        nbytes: Of all of them.
    """

    copies: BufferCopies
    places: list[int]
    nbytes: int

    @contextmanager
    def jobs(self, values: Sequence[Any]) -> Iterator[Iterable[Job]]:
        """Yield what copies them, from all values; to be done within the block."""
        with self.copies.jobs([values[place] for place in self.places]) as jobs:
            yield jobs


def _divided(mapped: list[_Mapped], *, large: int, threads: int) -> tuple[list[_Mapped], _Shared] | None:
    """Return what the calling thread copies in its loop, and what all share; None where that is not worth it."""
    if threads < 2 or len(mapped) != 1 or not can_copy_buffers():
        return None
    small = mapped[0]
    nbytes = [target.nbytes for target in small.targets]
    left = sum(nbytes) - (sum(nbytes) + large) / threads
    others: list[int] = []
    for place, size in enumerate(nbytes):
        if left > 0 and size >= _PAGE:
            others.append(place)
            left -= size
    shared = small.some(others)
    total = sum(target.nbytes for target in shared.targets)
    if total < WORTH_A_THREAD or small.memory is None:
        return None
    taken = set(others)
    own = small.some([place for place in range(len(nbytes)) if place not in taken])
    return [own], _Shared(copies=BufferCopies(small.memory, shared.parts), places=shared.places, nbytes=total)


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
