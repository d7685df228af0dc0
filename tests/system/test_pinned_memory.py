"""Pages are pinned while they are mapped, in the device's primary context; a warning says if they cannot be."""

from __future__ import annotations

import gc
import mmap
import os
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from ckptstore.system import pinned_memory
from ckptstore.system.pinned_memory import PinnablePages
from cuda_driver import OUT_OF_MEMORY, Driver, installed


def address(pages: PinnablePages) -> int:
    return int(np.frombuffer(pages, np.uint8).ctypes.data)


def test_all_pages_are_pinned_once_and_while_they_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    pages = PinnablePages(-1, 3 * mmap.PAGESIZE)
    pages.pin(2)
    pages.pin(2)
    assert driver.pinned == {address(pages): len(pages)}
    assert driver.contexts == [1002]
    driver.assert_left_alone()

    view = np.frombuffer(pages, np.uint8)
    del pages
    assert driver.pinned
    del view
    assert not driver.pinned
    driver.assert_left_alone()


def test_pages_that_cannot_be_pinned_are_a_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver(refuses=OUT_OF_MEMORY))
    pages = PinnablePages(-1, 1 << 20)
    with pytest.warns(RuntimeWarning, match=r"take longer.*cuMemHostRegister_v2: CUDA error 2"):
        pages.pin(0)
    pages.pin(0)
    del pages
    driver.assert_left_alone()


def test_an_old_registration_of_the_same_address_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the device would write to the memory that was at this address before."""
    driver = installed(monkeypatch, Driver())
    pages = PinnablePages(-1, 1 << 20)
    driver.pinned[address(pages)] = mmap.PAGESIZE
    pages.pin(0)
    assert driver.pinned == {address(pages): len(pages)}
    driver.assert_left_alone()


def test_an_interrupt_right_after_pinning_leaves_nothing_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    register = driver.cuMemHostRegister_v2

    def interrupted(begin: Any, nbytes: Any, flags: int) -> int:
        register(begin, nbytes, flags)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "cuMemHostRegister_v2", interrupted)
    pages = PinnablePages(-1, 1 << 20)
    with pytest.raises(KeyboardInterrupt) as error:
        pages.pin(0)
    assert driver.pinned
    del pages, error
    gc.collect()
    assert not driver.pinned
    driver.assert_left_alone()


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the driver is Linux's")
@pytest.mark.parametrize("name", ["libno-such-driver.so.1", "libc.so.6"])
def test_a_machine_without_the_driver_copies_unpinned(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(pinned_memory, "_DRIVER", name)
    pinned_memory._driver.cache_clear()
    try:
        pages = PinnablePages(-1, 1 << 20)
        with pytest.warns(RuntimeWarning, match=r"cannot be page-locked"):
            pages.pin(0)
        del pages
    finally:
        pinned_memory._driver.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_process_leaves_pages_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver())
    kept = [PinnablePages(-1, 1 << 20)]
    kept[0].pin(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # backends have threads
        child = os.fork()
    if not child:
        kept.clear()
        gc.collect()
        os._exit(0 if driver.pinned else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert driver.pinned
