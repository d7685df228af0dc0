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
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

# Of the CUDA driver: locked for all contexts of the process, not for the one that is current alone.
_PORTABLE = 1
_DRIVER = "libcuda.so.1"


class PageLocked:
    """Memory whose pages stay where they are until this is let go of; the memory stays for as long.

    What a crash leaves: nothing; the pages are the process' own and go with it.

    Args:
        memory: All of it is locked; pages that are not there yet are faulted in.
        device: The index of a CUDA device that was used before.

    Raises:
        OSError: The driver refuses, for example since the machine has no memory left that may be locked.
    """

    def __init__(self, memory: mmap.mmap, device: int) -> None:
        self.memory = memory
        begin = np.frombuffer(memory, np.uint8).ctypes.data
        with _context(device):
            _call("cuMemHostRegister_v2", ctypes.c_void_p(begin), ctypes.c_size_t(len(memory)), _PORTABLE)
        # A finaliser is called before the attributes go, and with them perhaps the memory.
        weakref.finalize(self, _unlock, begin, device, os.getpid()).atexit = False


def lock(memory: mmap.mmap, device: int) -> PageLocked | None:
    """Lock memory, or say in a warning that it cannot be: copies into it are right all the same, and take longer."""
    try:
        return PageLocked(memory, device)
    except OSError as error:
        warnings.warn(
            f"copies from the GPU take longer: {len(memory) / 1e6:,.0f} MB of memory for snapshots cannot be "
            f"page-locked ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _unlock(begin: int, device: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked process has the memory, and no CUDA
        with _context(device):
            _call("cuMemHostUnregister", ctypes.c_void_p(begin))


@contextmanager
def _context(device: int) -> Iterator[None]:
    """Have the device's own context, which torch uses too, current in this thread."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(number), device)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(context))
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", number)


def _call(name: str, *arguments: Any) -> None:
    """Call the driver; other threads run meanwhile.

    Raises:
        OSError: It has answered with an error, or there is none.
    """
    code = getattr(_driver(), name)(*arguments)
    if code:
        raise OSError(f"{name}: CUDA error {code}")


@cache
def _driver() -> Any:
    return ctypes.CDLL(_DRIVER)
