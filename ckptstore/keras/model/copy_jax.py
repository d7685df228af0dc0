"""How JAX's arrays come into host memory: small ones straight into shared memory, large ones in pieces.

By the buffer protocol: of a thousand copies, a seventh of the time went into making a numpy array of each. Where there
is a second core, and enough to copy, it copies a part of the small ones, too.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ckptstore.keras.model.copy_targets import ArraySpecs
from ckptstore.system.arrays import Array
from ckptstore.system.parallel_copy import MIN_BYTES_PER_THREAD, Job, ParallelCopy, copy_jobs
from ckptstore.system.small_copies import MAX_PIECES, SmallCopies, can_copy_buffers

# Bytes from which on numpy copies an array in pieces.
_LARGE = 1 << 20
# Bytes from which on the kernel copies an array in about the time that the loop here takes for it.
_PAGE = 1 << 12
# Of larger ones, such as 64 KB, it takes so many times as long.
_KERNEL = 1.35


class JaxCopies:
    """Copies arrays into the same places again and again.

    Args:
        targets: One array for each value, of its dtype and shape, C-contiguous.
        threads: As many copy at once as may.
    """

    def __init__(self, targets: Sequence[Array], *, threads: int) -> None:
        self._targets = targets
        self._threads = threads
        self._expected = ArraySpecs.like(targets)
        # Of the values that were last found to be so, what JAX knows of each; a step returns the same again.
        self._kinds: list[Any] | None = None
        self._large = [place for place, target in enumerate(targets) if target.nbytes >= _LARGE]
        self._nbytes = sum(targets[place].nbytes for place in self._large)
        # Small ones whose values are no buffers, such as those of several devices.
        self._odd: set[int] = set()
        self._plan()

    def _plan(self) -> None:
        self._mapped, self._others = _apart(self._targets, self._odd)
        self._shared: _Shared | None = None
        if self._threads > 1 and len(self._mapped) == 1 and can_copy_buffers():
            self._mapped, self._shared = _divided(self._mapped[0], large=self._nbytes, threads=self._threads)

    def __call__(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        """Copy values; those that are being computed are waited for.

        Raises:
            TypeError: A dtype is another.
            ValueError: A shape is another.
        """
        _ask_devices(values)
        self._check(values)
        try:
            self._copy(values, parallel_copy)
        # The last is what Python has for an array that is not in C order.
        except (BufferError, OSError, TypeError, ValueError) as error:
            self._leave_out(values, error)
            self._copy(values, parallel_copy)

    def _leave_out(self, values: Sequence[Any], error: Exception) -> None:
        """Have numpy copy what is no buffer here, and the loop all others where the kernel may not, from now on."""
        self._odd |= {place for place, value in enumerate(values) if not _is_buffer(value)}
        if isinstance(error, OSError):
            self._threads = 1
        self._plan()

    def _copy(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        large: list[Job] = []
        for place in self._large:
            large += copy_jobs(self._targets[place], np.asarray(values[place]))
        own = partial(self._copy_small, values)
        if self._shared is None:
            parallel_copy(large, nbytes=self._nbytes, own_job=own)
            return
        with self._shared.jobs(values) as jobs:
            parallel_copy(large, nbytes=self._shared.nbytes + self._nbytes, more_jobs=jobs, own_job=own)

    def _copy_small(self, values: Sequence[Any]) -> None:
        for part in self._mapped:
            part([values[place] for place in part.places])
        for place in self._others:
            self._targets[place][...] = values[place]

    def _check(self, values: Sequence[Any]) -> None:
        # A thousand dtypes and shapes take 0.3 ms to ask for.
        kinds = [getattr(value, "aval", None) for value in values]
        if kinds != self._kinds:
            self._expected.check(values)
            self._kinds = None if None in kinds else kinds


def _ask_devices(values: Sequence[Any]) -> None:
    """Have all copies from devices on their way; arrays in host memory are looked at where they lie."""
    import jax

    if jax.default_backend() == "cpu":
        return
    for value in values:
        if isinstance(value, jax.Array) and next(iter(value.devices())).platform != "cpu":
            value.copy_to_host_async()


def _is_buffer(value: Any) -> bool:
    try:
        return memoryview(value).c_contiguous
    except (BufferError, TypeError, ValueError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mapped:
    """Small targets in one piece of shared memory.

    Attributes:
        memory: What they lie in.
        parts: Where each lies.
        places: Which of all targets they are.
    """

    memory: mmap.mmap
    parts: list[slice]
    places: list[int]

    def __call__(self, values: Sequence[Any]) -> None:
        """Copy buffers of as many bytes."""
        deque(map(self.memory.__setitem__, self.parts, values), maxlen=0)

    def some(self, indices: Sequence[int]) -> _Mapped:
        """Return some of them."""
        return _Mapped(
            memory=self.memory,
            parts=[self.parts[index] for index in indices],
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

    copies: SmallCopies
    places: list[int]
    nbytes: int

    def jobs(self, values: Sequence[Any]) -> AbstractContextManager[Iterator[Job]]:
        """Return a block for what copies them, given all values."""
        return self.copies.jobs([values[place] for place in self.places])


def _divided(small: _Mapped, *, large: int, threads: int) -> tuple[list[_Mapped], _Shared | None]:
    """Return what the calling thread copies in its loop, and what all share; None where that is not worth it."""
    sizes = [part.stop - part.start for part in small.parts]
    left, calls = _share(sum(sizes), large=large, threads=threads)
    if not calls:
        return [small], None
    shared: list[int] = []
    for index, size in enumerate(sizes):
        if left > 0 and size >= _PAGE and len(shared) < calls * MAX_PIECES:
            shared.append(index)
            left -= size
    nbytes = sum(sizes[index] for index in shared)
    if nbytes < MIN_BYTES_PER_THREAD:
        return [small], None
    calls = min(calls, nbytes // MIN_BYTES_PER_THREAD)
    others = set(range(len(sizes))).difference(shared)
    found = small.some(shared)
    return [small.some(sorted(others))], _Shared(
        copies=SmallCopies(found.memory, found.parts, calls=calls), places=found.places, nbytes=nbytes
    )


def _share(small: int, *, large: int, threads: int) -> tuple[float, int]:
    """Return how many bytes of small ones all share, so that all threads end at once, and by how many calls."""
    for helpers in range(threads - 1, 0, -1):
        # (large + _KERNEL * shared) / helpers is what the others have, small - shared what the caller has.
        shared = (helpers * small - large) / (helpers + _KERNEL)
        if shared >= MIN_BYTES_PER_THREAD and shared + large >= helpers * MIN_BYTES_PER_THREAD:
            return shared, min(helpers, int(shared) // MIN_BYTES_PER_THREAD)
    return 0.0, 0


def _apart(targets: Sequence[Array], odd: Collection[int]) -> tuple[list[_Mapped], list[int]]:
    """Return small targets that lie in shared memory, and the places of small ones that numpy has to copy."""
    mapped: dict[int, _Mapped] = {}
    others: list[int] = []
    for place, target in enumerate(targets):
        if target.nbytes >= _LARGE:
            continue
        memory: Any = target.base
        # bfloat16 and its like are no dtypes of numpy's own, and none of buffers.
        is_plain = target.dtype.isbuiltin == 1 and target.flags.c_contiguous and place not in odd
        if not isinstance(memory, mmap.mmap) or not is_plain:
            others.append(place)
            continue
        part = mapped.setdefault(id(memory), _Mapped(memory=memory, parts=[], places=[]))
        begin = target.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
        part.parts.append(slice(begin, begin + target.nbytes))
        part.places.append(place)
    return list(mapped.values()), others
