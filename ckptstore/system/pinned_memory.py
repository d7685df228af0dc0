"""Locks the pages of host memory for a CUDA device, which then writes into them by itself.

Into memory whose pages may move, the driver copies by way of a buffer of its own, and the caller waits for each piece.
Memory that CUDA itself hands out is locked, but cannot be shared with another process: so what is shared is locked
afterwards.

The driver is asked, and not the CUDA runtime: a call of the runtime that fails is reported once more by the next kernel
that torch starts.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

# Of the CUDA driver: locked for all contexts of the process, not for the one that is current alone.
_PORTABLE = 1
_ALREADY_LOCKED, _NOT_LOCKED = 712, 713
_DRIVER = "libcuda.so.1"


class PinnablePages(mmap.mmap):
    """Mapped memory that can be locked for as long as it is there: once, whoever copies into it and however often.

    What a crash leaves: nothing; locked pages are the process' own and go with it.
    """

    _was_asked = False
    # The device, and the process that has locked them.
    _locked: tuple[int, int] | None = None

    def pin(self, device: int) -> None:
        """Lock all pages, or warn that they cannot be: copies into them are right all the same, and take longer.

        Pages that are not there yet are faulted in.

        Args:
            device: The index of a CUDA device that was used before.
        """
        if self._was_asked:
            return
        self._was_asked = True
        # Before they are: an interrupt may come right behind that.
        self._locked = device, os.getpid()
        try:
            _lock(self._begin(), len(self), device)
        except OSError as error:
            self._locked = None
            warnings.warn(
                f"copies from the GPU take longer: {len(self) / 1e6:,.0f} MB of memory for snapshots cannot be "
                f"page-locked ({error})",
                RuntimeWarning,
                stacklevel=2,
            )

    def _begin(self) -> int:
        return int(np.frombuffer(self, np.uint8).ctypes.data)

    def __del__(self) -> None:
        """Unlock them while they are still mapped; in a forked process, which has no CUDA, they are not its own."""
        if self._locked is not None and self._locked[1] == os.getpid() and not sys.is_finalizing():
            _unlock(self._begin(), self._locked[0])


def _lock(begin: int, nbytes: int, device: int) -> None:
    def ask() -> int:
        return _call("cuMemHostRegister_v2", ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), _PORTABLE)

    with _context(device):
        code = ask()
        if code == _ALREADY_LOCKED:
            # It is of memory that was at this address before: the device would write to where that was.
            _call("cuMemHostUnregister", ctypes.c_void_p(begin))
            code = ask()
        _check("cuMemHostRegister_v2", code)


def _unlock(begin: int, device: int) -> None:
    with _context(device):
        code = _call("cuMemHostUnregister", ctypes.c_void_p(begin))
        if code != _NOT_LOCKED:
            _check("cuMemHostUnregister", code)


@contextmanager
def _context(device: int) -> Iterator[None]:
    """Have the device's own context, which torch uses too, current in this thread."""
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
    """Call the driver, and return the code that it answers with; other threads run meanwhile.

    Raises:
        OSError: There is no driver, or it is of another age.
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
