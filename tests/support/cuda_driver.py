"""A stand-in for the CUDA driver, with the rules of the real one, for machines without a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from ckptstore.system import pinned_memory

INVALID_CONTEXT, OUT_OF_MEMORY, ALREADY_REGISTERED, NOT_REGISTERED = 201, 2, 712, 713


class Driver:
    """The functions of the CUDA driver that are used: contexts by device, and pinned ranges.

    Args:
        refuses: The error code of registering memory; 0 to register it.
    """

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.retained: dict[int, int] = {}
        self.current: list[int] = []
        self.pinned: dict[int, int] = {}
        self.contexts: list[int] = []

    def cuDeviceGet(self, number: Any, ordinal: int) -> int:
        number._obj.value = ordinal
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, number: Any) -> int:
        self.retained[number.value] = self.retained.get(number.value, 0) + 1
        context._obj.value = 1000 + number.value
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, number: Any) -> int:
        self.retained[number.value] -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        context._obj.value = self.current.pop()
        return 0

    def cuMemHostRegister_v2(self, begin: Any, nbytes: Any, flags: int) -> int:
        if not self.current:
            return INVALID_CONTEXT
        if self.refuses:
            return self.refuses
        if begin.value in self.pinned:
            return ALREADY_REGISTERED
        assert flags == 1
        self.contexts.append(self.current[-1])
        self.pinned[begin.value] = nbytes.value
        return 0

    def cuMemHostUnregister(self, begin: Any) -> int:
        if not self.current:
            return INVALID_CONTEXT
        nbytes = self.pinned.pop(begin.value, None)
        if nbytes is None:
            return NOT_REGISTERED
        # The memory must still be mapped: reading it would else end the process.
        ctypes.string_at(begin.value, nbytes)
        return 0

    def assert_left_alone(self) -> None:
        assert not self.current
        assert not any(self.retained.values())


def installed(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    monkeypatch.setattr(pinned_memory, "_driver", lambda: driver)
    return driver
