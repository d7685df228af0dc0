"""Host memory that two processes see: one copies a snapshot into it, the other writes it to the disk from there.

On Linux it is a memfd: no file system's limit applies (containers give ``/dev/shm`` 64 MB), and nothing is left of it
once both processes are gone, however they end.
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
# Linux 5.14. Faults pages in at once, some ten times faster than touching each.
_MADV_POPULATE_WRITE = 23
# Fewer faults, where the administrator lets shared memory have huge pages.
_MADV_HUGEPAGE = 14
_ROUND = 1 << 20


def aligned(offset: int) -> int:
    """Return the next offset at which an array may begin.

    Example:
        >>> aligned(0), aligned(1), aligned(64)
        (0, 64, 64)
    """
    return -(-offset // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    """A piece of memory that grows when it must and is used again and again.

    Args:
        descriptor: Of a memfd that another process has made; None to make one, or memory of this process alone where
            the platform knows no memfd.

    Attributes:
        descriptor: Of the memfd, or None.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("ckptstore-snapshot", os.MFD_CLOEXEC)
        self.descriptor = descriptor
        self._map: PinnablePages | None = None
        self._populated = 0
        self._populating: threading.Thread | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that there is room for."""
        return 0 if self._map is None else len(self._map)

    def reserve(self, nbytes: int) -> bool:
        """Make room; returns True where the memory is another than before, and views of it must be taken anew."""
        if nbytes <= self.nbytes:
            return False
        self._wait()
        nbytes = -(-nbytes // _ROUND) * _ROUND
        if self.descriptor is None:
            self._map = PinnablePages(-1, nbytes)
        else:
            os.ftruncate(self.descriptor, nbytes)
            self._map = PinnablePages(self.descriptor, nbytes)
        self._populated = 0
        return True

    def refresh(self) -> bool:
        """See the memory as the process that made it has last made it; returns True where it is another."""
        if self.descriptor is None:
            return False
        nbytes = os.fstat(self.descriptor).st_size
        if nbytes == self.nbytes:
            return False
        self._map = PinnablePages(self.descriptor, nbytes) if nbytes else None
        return True

    def prefault(self) -> None:
        """Have the pages there before the copy needs them."""
        self._wait()
        self._prefault()

    def prefault_in_background(self, then: Callable[[], None]) -> None:
        """Let a thread do it, and what is to be done behind it; a later `populate` waits for both."""
        if self._populating is None and self._populated < self.nbytes:
            self._populating = threading.Thread(
                target=self._populate_then, args=(then,), name="ckptstore-memory", daemon=True
            )
            self._populating.start()

    def _populate_then(self, then: Callable[[], None]) -> None:
        self._prefault()
        then()

    def _wait(self) -> None:
        if self._populating is not None:
            self._populating.join()
            self._populating = None

    def _prefault(self) -> None:
        if self._map is None or self._populated >= self.nbytes:
            return
        # Through ctypes, which lets other threads run meanwhile. Where the kernel cannot, the copy faults pages in.
        if _MADVISE is not None:
            begin = self.array(0, (0,), np.dtype(np.uint8)).ctypes.data
            for advice in (_MADV_HUGEPAGE, _MADV_POPULATE_WRITE):
                _MADVISE(begin, self.nbytes, advice)
        self._populated = self.nbytes

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a view of an array that lies at `offset`; right until `reserve` or `refresh` returns True."""
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
        """Let go of it; what is left of it goes with the last view."""
        self._wait()
        self._map = None
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        """Let go of what nobody closed."""
        if getattr(self, "descriptor", None) is not None:
            self.close()


def _find_madvise() -> Any:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function if hasattr(os, "memfd_create") else None


_MADVISE = _find_madvise()
