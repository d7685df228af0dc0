"""Copying of JAX arrays to host memory: small ones directly into shared memory, large ones in pieces.

Arrays of several devices are copied shard by shard, each to its place, see `copy_shards`. Small ones use the buffer
protocol: a seventh of the time of a thousand copies was spent on making numpy arrays. With a second core and enough to
copy, that core copies a part of the small ones, too.
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

from ckptstore.keras.model.copy_shards import ShardPlan, shardings_of
from ckptstore.keras.model.copy_targets import ArraySpecs
from ckptstore.system.arrays import Array
from ckptstore.system.parallel_copy import (
    MIN_BYTES_PER_THREAD,
    CopyJob,
    ParallelCopy,
    copy_jobs,
    strided_copy_jobs,
)
from ckptstore.system.small_copies import MAX_PIECES, SmallCopies, can_copy_buffers

# Bytes from which on numpy copies an array in pieces.
_LARGE = 1 << 20
# Bytes from which on the kernel copies an array about as fast as the loop here.
_PAGE = 1 << 12
# For larger arrays, such as 64 KB, it takes this many times as long.
_KERNEL = 1.35


class JaxCopies:
    """Copies arrays into the same targets again and again.

    Args:
        targets: An array for each value, of its dtype and shape, C-contiguous.
        threads: Number of threads that may copy at the same time.
    """

    def __init__(self, targets: Sequence[Array], *, threads: int) -> None:
        self._wholes = targets
        self._threads = threads
        self._expected = ArraySpecs.like(targets)
        # Abstract values of the last values that passed the check; a step returns the same ones again.
        self._kinds: list[Any] | None = None
        # Shardings of the values that the plan is for; None as long as all are taken to be on one device.
        self._shardings: list[Any] | None = None
        self._shards: ShardPlan | None = None
        self._lay_out(targets, range(len(targets)))

    def _lay_out(self, targets: Sequence[Array], wholes: Sequence[int]) -> None:
        """Decide how each source is copied; a shard of a large array counts as large itself."""
        self._targets = targets
        self._large = [place for place, whole in enumerate(wholes) if self._wholes[whole].nbytes >= _LARGE]
        self._nbytes = sum(targets[place].nbytes for place in self._large)
        self._small = sorted(set(range(len(targets))).difference(self._large))
        # Small ones whose values are not buffers, such as those in another order.
        self._odd: set[int] = set()
        self._plan()

    def _plan(self) -> None:
        self._mapped, self._others = _apart(self._targets, self._small, self._odd)
        self._shared: _Shared | None = None
        if self._threads > 1 and len(self._mapped) == 1 and can_copy_buffers():
            self._mapped, self._shared = _divided(self._mapped[0], large=self._nbytes, threads=self._threads)

    def __call__(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        """Copy values; those that are still being computed are waited for.

        Raises:
            TypeError: A dtype differs.
            ValueError: A shape differs.
            RuntimeError: An array was deleted.
        """
        sources = self._sources(values)
        _start_transfers(sources)
        self._check(values)
        try:
            self._copy(sources, parallel_copy)
        # ValueError: an array that is not in C order.
        except (BufferError, OSError, TypeError, ValueError) as error:
            self._exclude(sources, error)
            self._copy(sources, parallel_copy)

    def _sources(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the arrays of single devices that are copied."""
        import jax

        # Where there is one device, even the question would take a tenth of a millisecond for a thousand arrays.
        if jax.local_device_count() == 1:
            return values
        shardings = shardings_of(values)
        if shardings != self._shardings:
            self._check(values)
            self._shards = ShardPlan(values, self._wholes)
            self._shardings = shardings
            self._lay_out(self._shards.targets, self._shards.wholes)
        return values if self._shards is None else self._shards.sources(values)

    def _exclude(self, values: Sequence[Any], error: Exception) -> None:
        """From now on, copy by numpy what is not a buffer, and all others in the loop if the kernel refuses to copy."""
        self._odd |= {place for place, value in enumerate(values) if not _is_buffer(value)}
        if isinstance(error, OSError):
            self._threads = 1
        self._plan()

    def _copy(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        large: list[CopyJob] = []
        for place in self._large:
            target = self._targets[place]
            pieces = copy_jobs if target.flags.c_contiguous else strided_copy_jobs
            large += pieces(target, np.asarray(values[place]))
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
        # Reading a thousand dtypes and shapes takes 0.3 ms.
        kinds = [getattr(value, "aval", None) for value in values]
        if kinds != self._kinds:
            self._expected.check(values)
            self._kinds = None if None in kinds else kinds


def _start_transfers(values: Sequence[Any]) -> None:
    """Start the copies of all arrays that are on a device; arrays in host memory need none."""
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
        memory: The shared memory.
        parts: The place of each target in it.
        places: Their indices among all targets.
    """

    memory: mmap.mmap
    parts: list[slice]
    places: list[int]

    def __call__(self, values: Sequence[Any]) -> None:
        """Copy buffers of the same sizes."""
        deque(map(self.memory.__setitem__, self.parts, values), maxlen=0)

    def some(self, indices: Sequence[int]) -> _Mapped:
        """Return a part of these targets."""
        return _Mapped(
            memory=self.memory,
            parts=[self.parts[index] for index in indices],
            places=[self.places[index] for index in indices],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Small targets that any thread may copy.

    Attributes:
        copies: Copies their values.
        places: Their indices among all targets.
        nbytes: Their size together.
    """

    copies: SmallCopies
    places: list[int]
    nbytes: int

    def jobs(self, values: Sequence[Any]) -> AbstractContextManager[Iterator[CopyJob]]:
        """Return a context with the jobs that copy them, given all values."""
        return self.copies.jobs([values[place] for place in self.places])


def _divided(small: _Mapped, *, large: int, threads: int) -> tuple[list[_Mapped], _Shared | None]:
    """Return what the calling thread copies in its loop, and what all threads share; None if that is not worth it."""
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
    """Return how many bytes of small targets all threads share, so that they end together, and in how many calls."""
    for helpers in range(threads - 1, 0, -1):
        # (large + _KERNEL * shared) / helpers is the work of each helper, small - shared that of the caller.
        shared = (helpers * small - large) / (helpers + _KERNEL)
        if shared >= MIN_BYTES_PER_THREAD and shared + large >= helpers * MIN_BYTES_PER_THREAD:
            return shared, min(helpers, int(shared) // MIN_BYTES_PER_THREAD)
    return 0.0, 0


def _apart(
    targets: Sequence[Array], small: Sequence[int], odd: Collection[int]
) -> tuple[list[_Mapped], list[int]]:
    """Return the small targets in shared memory, and the indices of the small ones that numpy must copy."""
    mapped: dict[int, _Mapped] = {}
    others: list[int] = []
    for place in small:
        target = targets[place]
        memory = _memory_of(target)
        # bfloat16 and similar dtypes are not numpy's own, and have no buffers.
        is_plain = target.dtype.isbuiltin == 1 and target.flags.c_contiguous and place not in odd
        if memory is None or not is_plain:
            others.append(place)
            continue
        part = mapped.setdefault(id(memory), _Mapped(memory=memory, parts=[], places=[]))
        begin = target.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
        part.parts.append(slice(begin, begin + target.nbytes))
        part.places.append(place)
    return list(mapped.values()), others


def _memory_of(target: Array) -> mmap.mmap | None:
    """Return the memory that an array, or the array that it is a part of, is a view of."""
    base: Any = target.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
