"""Pages are locked for as long as they are copied into, in the device's own context; where they cannot be, it is said.

A stand-in takes the place of the CUDA driver, whose rules it keeps: no machine of the tests has one.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from ckptstore.background import page_locked
from ckptstore.background.page_locked import Pages

INVALID_CONTEXT, OUT_OF_MEMORY, ALREADY_REGISTERED, NOT_REGISTERED = 201, 2, 712, 713


class Driver:
    """What of the CUDA driver is used: contexts by device, and locked ranges.

    Args:
        refuses: The code that locking is answered with; 0 to lock.
    """

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.retained: dict[int, int] = {}
        self.current: list[int] = []
        self.locked: dict[int, int] = {}
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
        if begin.value in self.locked:
            return ALREADY_REGISTERED
        assert flags == 1
        self.contexts.append(self.current[-1])
        self.locked[begin.value] = nbytes.value
        return 0

    def cuMemHostUnregister(self, begin: Any) -> int:
        if not self.current:
            return INVALID_CONTEXT
        nbytes = self.locked.pop(begin.value, None)
        if nbytes is None:
            return NOT_REGISTERED
        # The memory is still there: to read what is not would end the process.
        ctypes.string_at(begin.value, nbytes)
        return 0

    def assert_left_alone(self) -> None:
        assert not self.current
        assert not any(self.retained.values())


def installed(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    monkeypatch.setattr(page_locked, "_driver", lambda: driver)
    return driver


def address(pages: Pages) -> int:
    return int(np.frombuffer(pages, np.uint8).ctypes.data)


def test_all_pages_are_locked_once_and_as_long_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    pages = Pages(-1, 3 * mmap.PAGESIZE)
    pages.lock(2)
    pages.lock(2)
    assert driver.locked == {address(pages): len(pages)}
    assert driver.contexts == [1002]
    driver.assert_left_alone()

    view = np.frombuffer(pages, np.uint8)
    del pages
    assert driver.locked
    del view
    assert not driver.locked
    driver.assert_left_alone()


def test_what_cannot_be_locked_is_said_once_and_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver(refuses=OUT_OF_MEMORY))
    pages = Pages(-1, 1 << 20)
    with pytest.warns(RuntimeWarning, match=r"take longer.*cuMemHostRegister_v2: CUDA error 2"):
        pages.lock(0)
    pages.lock(0)
    del pages
    driver.assert_left_alone()


def test_what_an_address_had_before_is_unlocked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the device would write where the memory was that was at this address."""
    driver = installed(monkeypatch, Driver())
    pages = Pages(-1, 1 << 20)
    driver.locked[address(pages)] = mmap.PAGESIZE
    pages.lock(0)
    assert driver.locked == {address(pages): len(pages)}
    driver.assert_left_alone()


def test_an_interrupt_behind_the_locking_leaves_nothing_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    register = driver.cuMemHostRegister_v2

    def interrupted(begin: Any, nbytes: Any, flags: int) -> int:
        register(begin, nbytes, flags)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "cuMemHostRegister_v2", interrupted)
    pages = Pages(-1, 1 << 20)
    with pytest.raises(KeyboardInterrupt) as error:
        pages.lock(0)
    assert driver.locked
    del pages, error
    gc.collect()
    assert not driver.locked
    driver.assert_left_alone()


@pytest.mark.skipif(sys.platform != "linux", reason="is Linux's name of the driver")
@pytest.mark.parametrize("name", ["libno-such-driver.so.1", "libc.so.6"])
def test_a_machine_without_the_driver_goes_without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(page_locked, "_DRIVER", name)
    page_locked._driver.cache_clear()
    try:
        pages = Pages(-1, 1 << 20)
        with pytest.warns(RuntimeWarning, match=r"cannot be page-locked"):
            pages.lock(0)
        del pages
    finally:
        page_locked._driver.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_process_leaves_what_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    kept = [Pages(-1, 1 << 20)]
    kept[0].lock(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # backends have threads
        child = os.fork()
    if not child:
        kept.clear()
        gc.collect()
        os._exit(0 if driver.locked else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert driver.locked
