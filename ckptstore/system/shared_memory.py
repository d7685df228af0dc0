"""Host memory that two processes share: one copies a snapshot into it, the other writes it to the disk from there.

On Linux it is a memfd: no limit of a file system applies (containers give ``/dev/shm`` 64 MB), and nothing is left of
it once both processes are gone, however they end.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ckptstore.system.arrays import Array
from ckptstore.system.pinned_memory import PinnablePages

ALIGNMENT = 64
# Since Linux 5.14. Faults all pages in at once, some ten times faster than touching each.
_MADV_POPULATE_WRITE = 23
# Fewer page faults, where the administrator allows huge pages for shared memory.
_MADV_HUGEPAGE = 14
# Sizes are rounded up to a multiple of it, in bytes.
_ROUND = 1 << 20


def aligned(offset: int) -> int:
    """Return the next offset at which an array may begin.

    Example:
        >>> aligned(0), aligned(1), aligned(64)
        (0, 64, 64)
    """
    return -(-offset // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    """A block of memory that is reused, and grows when it must.

    Args:
        descriptor: Of a memfd; None for memory that belongs to this process alone.

    Attributes:
        descriptor: Of the memfd, or None.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = descriptor
        self._map: PinnablePages | None = None
        self._prefaulted = 0
        self._prefaulting: threading.Thread | None = None

    @classmethod
    def shareable(cls) -> SharedMemory:
        """Make memory that can be shared with another process, by its descriptor.

        Raises:
            OSError: The system refuses a memfd.
        """
        return cls(os.memfd_create("ckptstore-snapshot", os.MFD_CLOEXEC))

    @property
    def nbytes(self) -> int:
        """The size of the memory in bytes."""
        return 0 if self._map is None else len(self._map)

    def reserve(self, nbytes: int) -> bool:
        """Make room for so many bytes; returns True if the memory was mapped again, so that old views are invalid."""
        if nbytes <= self.nbytes:
            return False
        self._wait()
        nbytes = -(-nbytes // _ROUND) * _ROUND
        if self.descriptor is None:
            self._map = PinnablePages(-1, nbytes)
        else:
            os.ftruncate(self.descriptor, nbytes)
            self._map = PinnablePages(self.descriptor, nbytes)
        self._prefaulted = 0
        return True

    def refresh(self) -> bool:
        """Follow a change of size by the other process; returns True if the memory was mapped again."""
        if self.descriptor is None:
            return False
        nbytes = os.fstat(self.descriptor).st_size
        if nbytes == self.nbytes:
            return False
        self._map = PinnablePages(self.descriptor, nbytes) if nbytes else None
        return True

    def prefault(self) -> None:
        """Fault the pages in before the copy needs them."""
        self._wait()
        self._prefault()

    def prefault_in_background(self, then: Callable[[], None]) -> None:
        """Fault the pages in and then call `then`, both in a thread; a later `prefault` waits for it."""
        if self._prefaulting is None and self._prefaulted < self.nbytes:
            self._prefaulting = threading.Thread(
                target=self._prefault_then, args=(then,), name="ckptstore-memory", daemon=True
            )
            self._prefaulting.start()

    def _prefault_then(self, then: Callable[[], None]) -> None:
        self._prefault()
        then()

    def _wait(self) -> None:
        if self._prefaulting is not None:
            self._prefaulting.join()
            self._prefaulting = None

    def _prefault(self) -> None:
        if self._map is None or self._prefaulted >= self.nbytes:
            return
        # Through ctypes, so that other threads run meanwhile. Where the kernel cannot, the copy faults the pages in.
        if _MADVISE is not None:
            begin = self.array(0, (0,), np.dtype(np.uint8)).ctypes.data
            for advice in (_MADV_HUGEPAGE, _MADV_POPULATE_WRITE):
                _MADVISE(begin, self.nbytes, advice)
        self._prefaulted = self.nbytes

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a view of the array at `offset`, valid until `reserve` or `refresh` returns True."""
        assert self._map is not None
        return np.ndarray(shape, dtype, self._map, offset)

    def put(self, offset: int, data: bytes) -> None:
        """Write bytes at `offset`."""
        assert self._map is not None
        self._map[offset : offset + len(data)] = data

    def get(self, offset: int, nbytes: int) -> bytes:
        """Return a copy of the bytes at `offset`."""
        assert self._map is not None
        return self._map[offset : offset + nbytes]

    def close(self) -> None:
        """Release the memory; the mapping itself goes with its last view."""
        self._wait()
        self._map = None
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the descriptor if nobody did. Waits for no thread: once Python exits, that may never end."""
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            self.descriptor = None
            _close(descriptor)


def _find_madvise() -> Any:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function if hasattr(os, "memfd_create") else None


_MADVISE = _find_madvise()
