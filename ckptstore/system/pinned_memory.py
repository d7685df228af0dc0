"""Pins host memory for a CUDA device, which can then write into it directly.

Into pageable memory the driver copies through a buffer of its own, and the caller waits for each piece. Memory that
CUDA allocates is pinned, but cannot be shared with another process: so shared memory is pinned after it was mapped.

The calls go to the CUDA driver, not to the runtime: a runtime call that fails is reported again by the next kernel that
torch starts.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from ckptstore.system import messages

# CU_MEMHOSTREGISTER_PORTABLE: pinned for all contexts of the process, not only for the current one.
_PORTABLE = 1
# CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
_ALREADY_PINNED, _NOT_PINNED = 712, 713
_DRIVER = "libcuda.so.1"


class PinnablePages(mmap.mmap):
    """Mapped memory that can be pinned once, for as long as it is mapped.

    What a crash leaves: nothing; pinned pages belong to the process and go with it.
    """

    _was_asked = False
    # The device, and the process that pinned the pages.
    _pinned: tuple[int, int] | None = None

    def pin(self, device: int) -> None:
        """Pin all pages, or warn that they cannot be pinned; copies are then still right, but take longer.

        Pages that are not there yet are faulted in. Later calls do nothing.

        Args:
            device: The index of a CUDA device that has been used before.
        """
        if self._was_asked:
            return
        self._was_asked = True
        # Recorded first: an interrupt may come right after the pages are pinned.
        self._pinned = device, os.getpid()
        try:
            _pin(self._begin(), len(self), device)
        except OSError as error:
            self._pinned = None
            messages.warn(
                f"copies from the GPU take longer: {len(self) / 1e6:,.0f} MB of memory for snapshots cannot be "
                f"page-locked ({error})",
                RuntimeWarning,
            )

    def _begin(self) -> int:
        return int(np.frombuffer(self, np.uint8).ctypes.data)

    def __del__(self) -> None:
        """Unpin the pages while they are still mapped; in a forked process, which has no CUDA, leave them."""
        if self._pinned is not None and self._pinned[1] == os.getpid() and not sys.is_finalizing():
            _unpin(self._begin(), self._pinned[0])


def _pin(begin: int, nbytes: int, device: int) -> None:
    def register() -> int:
        return _call("cuMemHostRegister_v2", ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), _PORTABLE)

    with _context(device):
        code = register()
        if code == _ALREADY_PINNED:
            # The registration belongs to memory that was at this address before; the device would write to that.
            _call("cuMemHostUnregister", ctypes.c_void_p(begin))
            code = register()
        _check("cuMemHostRegister_v2", code)


def _unpin(begin: int, device: int) -> None:
    with _context(device):
        code = _call("cuMemHostUnregister", ctypes.c_void_p(begin))
        if code != _NOT_PINNED:
            _check("cuMemHostUnregister", code)


@contextmanager
def _context(device: int) -> Iterator[None]:
    """Make the device's primary context, which torch uses too, current in this thread for the block."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _check("cuDeviceGet", _call("cuDeviceGet", ctypes.byref(number), device))
    _check("cuDevicePrimaryCtxRetain", _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number))
    try:
        _check("cuCtxPushCurrent_v2", _call("cuCtxPushCurrent_v2", context))
        try:
            yield
        finally:
            _check("cuCtxPopCurrent_v2", _call("cuCtxPopCurrent_v2", ctypes.byref(context)))
    finally:
        _check("cuDevicePrimaryCtxRelease_v2", _call("cuDevicePrimaryCtxRelease_v2", number))


def _call(name: str, *arguments: Any) -> int:
    """Call the driver and return its result code; other threads run meanwhile.

    Raises:
        OSError: There is no driver, or it does not know the function.
    """
    try:
        function = getattr(_driver(), name)
    except AttributeError as error:
        raise OSError(str(error)) from error
    return int(function(*arguments))


def _check(name: str, code: int) -> None:
    if code:
        raise OSError(f"{name}: CUDA error {code}")


@cache
def _driver() -> Any:
    return ctypes.CDLL(_DRIVER)
