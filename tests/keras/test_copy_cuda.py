"""Tests that all copies from a GPU are started before one is waited for, into locked memory; on torch.

No test machine has a GPU. A fake device claims that its tensors are on a GPU, and copies like one: some time after the
request, and at the latest when it is waited for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore.keras.model.copy import Copier
from ckptstore.system import pinned_memory
from ckptstore.system.pinned_memory import PinnablePages
from ckptstore.system.shared_memory import SharedMemory, aligned
from cuda_driver import OUT_OF_MEMORY, Driver, installed

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="is torch's")
SHAPES = [(), (3,), (2, 3), (300, 400), *[(20, 60)] * 30]


class Device:
    """A GPU that copies when it is waited for; `asked` counts the copies that are pending."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        self.asked: list[tuple[Any, Any]] = []
        self.waits: list[int] = []
        self.blocking = 0
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def copy(self, target: Any, host: Any, non_blocking: bool) -> None:
        self.asked.append((target, host))
        if not non_blocking:
            self.blocking += 1
            self._copy_all()

    def synchronize(self, device: Any) -> None:
        assert str(device) == "cuda:0"
        self.waits.append(len(self.asked))
        self._copy_all()

    def _copy_all(self) -> None:
        for target, host in self.asked:
            target.copy_(host)
        self.asked.clear()

    def tensor(self, host: Any) -> Any:
        """Return a tensor that claims to be on this device."""
        return _tensor_class()(host, self)


@cache
def _tensor_class() -> Callable[..., Any]:
    import torch

    aten = torch.ops.aten

    class OnDevice(torch.Tensor):  # type: ignore[misc]
        @staticmethod
        def __new__(cls: Any, host: Any, device: Device) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device="cuda:0")

        def __init__(self, host: Any, device: Device) -> None:
            self.host, self.owner = host, device

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            non_blocking = bool((kwargs or {}).get("non_blocking", args[2:] and args[2]))
            if func is aten._foreach_copy_.default:
                for target, value in zip(args[0], args[1], strict=True):
                    if isinstance(value, OnDevice):
                        value.owner.copy(target, value.host, non_blocking)
                    else:
                        target.copy_(value)
                return None
            if func is aten.copy_.default:
                args[1].owner.copy(args[0], args[1].host, non_blocking)
                return args[0]
            raise NotImplementedError(f"{func} is not what copies are made with")

    return OnDevice


def places(values: list[Any]) -> list[np.ndarray]:
    sizes = [aligned(max(1, value.numel() * value.element_size())) for value in values]
    memory = SharedMemory.shareable()
    memory.reserve(sum(sizes))
    ends = np.cumsum(sizes).tolist()
    return [
        memory.array(end - size, tuple(value.shape), np.dtype("float32"))
        for end, size, value in zip(ends, sizes, values, strict=True)
    ]


def hosts(seed: int) -> list[Any]:
    import torch

    torch.manual_seed(seed)
    return [torch.rand(shape) for shape in SHAPES]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    yield installed(monkeypatch, Driver())
    gc.collect()  # memory is unlocked by the driver that locked it


@pytest.mark.parametrize("together", [True, False])
def test_all_copies_are_in_flight_before_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, together: bool
) -> None:
    import torch

    if not together:
        monkeypatch.delattr(torch, "_foreach_copy_")
    device, host = Device(monkeypatch), hosts(1)
    values = [device.tensor(array) for array in host]
    copier, targets = Copier(values), places(host)
    for _ in range(2):
        copier(targets)
        assert [target.tolist() for target in targets] == [array.tolist() for array in host]
        for array in host:
            array += 1
    assert device.waits == [len(SHAPES)] * 2
    assert device.blocking == 0


def test_the_memory_is_locked_once_for_its_lifetime(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    device, host = Device(monkeypatch), hosts(2)
    values = [device.tensor(array) for array in host]
    first, second = places(host), places(host)
    copier = Copier(values)
    copier.prepare(first)
    memory = first[0].base
    assert isinstance(memory, PinnablePages)
    assert driver.pinned == {np.frombuffer(memory, np.uint8).ctypes.data: len(memory)}
    for _ in range(2):
        copier(first)
        copier(second)
    # A copier of a model that is captured at each save.
    Copier(values)(first)
    assert len(driver.pinned) == len(driver.contexts) == 2
    del copier, first, second, memory
    gc.collect()
    assert not driver.pinned


def test_nothing_is_locked_for_a_device_with_another_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def none() -> Any:
        raise AssertionError("the driver is not asked")

    monkeypatch.setattr(pinned_memory, "_driver", none)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    device, host = Device(monkeypatch), hosts(7)
    targets = places(host)
    Copier([device.tensor(array) for array in host])(targets)
    assert [target.tolist() for target in targets] == [array.tolist() for array in host]


def test_values_are_copied_if_the_memory_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = installed(monkeypatch, Driver(refuses=OUT_OF_MEMORY))
    device, host = Device(monkeypatch), hosts(3)
    copier, targets = Copier([device.tensor(array) for array in host]), places(host)
    with pytest.warns(RuntimeWarning, match="cannot be page-locked"):
        copier(targets)
    copier(targets)
    assert [target.tolist() for target in targets] == [array.tolist() for array in host]
    assert not driver.pinned


def test_values_in_host_memory_need_no_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise AssertionError("the driver is not asked")

    monkeypatch.setattr(pinned_memory, "_driver", none)
    host = hosts(4)
    targets = places(host)
    Copier(host)(targets)
    assert [target.tolist() for target in targets] == [array.tolist() for array in host]


def test_values_in_both_kinds_of_memory_are_copied_together(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    device, host = Device(monkeypatch), hosts(5)
    values = [device.tensor(array) if number % 2 else array for number, array in enumerate(host)]
    targets = places(host)
    Copier(values)(targets)
    assert [target.tolist() for target in targets] == [array.tolist() for array in host]


def test_no_copy_is_in_flight_after_one_has_failed(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    device, host = Device(monkeypatch), hosts(6)
    values = [device.tensor(array) for array in host]
    copier, targets = Copier(values), places(host)
    copier(targets)

    asked = device.copy

    def interrupted(target: Any, source: Any, non_blocking: bool) -> None:
        if len(device.asked) == 5:
            raise KeyboardInterrupt
        asked(target, source, non_blocking)

    monkeypatch.setattr(device, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copier(targets)
    assert not device.asked
