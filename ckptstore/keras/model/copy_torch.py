"""Copying of torch tensors to host memory: many small ones in one call, those of a GPU all in flight together.

A GPU copies to page-locked memory by itself, while the next copy is already started; then all are waited for together.
If the memory cannot be locked, the same calls copy one tensor after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ckptstore.keras.model.copy_targets import ArraySpecs
from ckptstore.keras.state.arrays import host_array
from ckptstore.system.arrays import Array
from ckptstore.system.parallel_copy import PIECE, ParallelCopy
from ckptstore.system.pinned_memory import PinnablePages

# Elements from which on torch itself copies a tensor with several threads.
_LARGE = 1 << 15


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Targets as tensors, and the indices of their values."""

    targets: list[Any]
    places: list[int]


class TorchCopies:
    """Copies tensors into the same targets again and again.

    Args:
        targets: An array for each value, C-contiguous. If a value is on a CUDA device, their memory is page-locked
            where possible.
        values: The present values; later ones must have the same dtypes and shapes.
    """

    def __init__(self, targets: Sequence[Array], values: Sequence[Any]) -> None:
        tensors = [_as_tensor(*pair) for pair in zip(values, targets, strict=True)]
        plain = [place for place, tensor in enumerate(tensors) if tensor is not None]
        small = [place for place in plain if targets[place].size < _LARGE]
        large = [place for place in plain if targets[place].size >= _LARGE]
        # Derived from the values at construction.
        self._expected = ArraySpecs.like(values)
        self._targets = targets
        self._nbytes = sum(targets[place].nbytes for place in small)
        # In groups, each copied by one thread.
        self._groups = [
            _Tensors([tensors[place] for place in group], group) for group in _groups(small, targets)
        ]
        self._large = _Tensors([tensors[place] for place in large], large)
        # torch and numpy have no dtype in common for these.
        self._odd = [place for place, tensor in enumerate(tensors) if tensor is None]
        _lock_pages(values, targets)

    def __call__(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        """Copy values; those that are still being computed are waited for.

        Raises:
            TypeError: A dtype differs.
            ValueError: A shape differs.
        """
        self._expected.check(values)
        devices = _cuda_devices(values)
        if devices:
            self._copy_from(devices, values)
        else:
            self._copy_in_memory(values, parallel_copy)
        for place in self._odd:
            np.copyto(self._targets[place], host_array(values[place]), casting="no")

    def _copy_in_memory(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        jobs = [partial(_copy, group, values) for group in self._groups]
        # Another thread has its own streams on a device, and would not wait for values that are being computed.
        if jobs and all(values[place].is_cpu for group in self._groups for place in group.places):
            parallel_copy(jobs, nbytes=self._nbytes)
        else:
            for job in jobs:
                job()
        _copy(self._large, values)

    def _copy_from(self, devices: set[Any], values: Sequence[Any]) -> None:
        import torch

        with ExitStack() as waiting:
            # For each device, even if another one fails: no copy may still be in flight afterwards.
            for device in devices:
                waiting.callback(torch.cuda.synchronize, device)
            for tensors in (*self._groups, self._large):
                _copy(tensors, values, non_blocking=True)


def _cuda_devices(values: Sequence[Any]) -> set[Any]:
    return {value.device for value in values if getattr(value, "is_cuda", False)}


def _lock_pages(values: Sequence[Any], targets: Sequence[Array]) -> None:
    import torch

    devices = [device.index for device in _cuda_devices(values)]
    # AMD's devices are called CUDA, too, but have another driver.
    if devices and torch.version.hip is None:
        bases: dict[int, Any] = {id(target.base): target.base for target in targets}
        for base in bases.values():
            if isinstance(base, PinnablePages):
                base.pin(min(devices))


def _groups(places: Sequence[int], targets: Sequence[Array]) -> Iterator[list[int]]:
    group: list[int] = []
    nbytes = 0
    for place in places:
        group.append(place)
        nbytes += targets[place].nbytes
        if nbytes >= PIECE:
            yield group
            group, nbytes = [], 0
    if group:
        yield group


def _copy(tensors: _Tensors, values: Sequence[Any], *, non_blocking: bool = False) -> None:
    """Copy in a single call if this torch has it: a thousand small tensors take one millisecond instead of ten."""
    import torch

    sources = [values[place] for place in tensors.places]
    together = getattr(torch, "_foreach_copy_", None)
    # Each thread has its own setting for gradients.
    with torch.no_grad():
        if together is not None and sources:
            together(tensors.targets, sources, non_blocking)
            return
        for target, value in zip(tensors.targets, sources, strict=True):
            target.copy_(value, non_blocking)


def _as_tensor(value: Any, target: Array) -> Any:
    """Return a target as a tensor of the value's dtype, or None if torch and numpy have no such dtype in common."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return None
    if str(value.dtype).removeprefix("torch.") != target.dtype.name or tuple(value.shape) != target.shape:
        return None
    if value.dtype == torch.bfloat16:
        return torch.from_numpy(target.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(target) if target.dtype.isbuiltin == 1 else None
