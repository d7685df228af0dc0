"""How torch's tensors come into host memory: small ones many by one call, those of a GPU all in flight together.

Into page-locked memory a GPU copies by itself, while the next copy is already asked for; all of them are waited for
together. Where the memory cannot be locked, the same calls copy one after the other.
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
    """Targets as torch sees them, and the places of their values."""

    targets: list[Any]
    places: list[int]


class TorchCopies:
    """Copies tensors into the same places again and again.

    Args:
        targets: One array for each value, C-contiguous. Memory that can be page-locked is, where a value lies on a
            CUDA device.
        values: What is to be copied, as it is now; later ones have the same dtypes and shapes.
    """

    def __init__(self, targets: Sequence[Array], values: Sequence[Any]) -> None:
        tensors = [_as_tensor(*pair) for pair in zip(values, targets, strict=True)]
        plain = [place for place, tensor in enumerate(tensors) if tensor is not None]
        small = [place for place in plain if targets[place].size < _LARGE]
        large = [place for place in plain if targets[place].size >= _LARGE]
        # What is known by what the values were when this was made.
        self._expected = ArraySpecs.like(values)
        self._targets = targets
        self._nbytes = sum(targets[place].nbytes for place in small)
        # In groups that one thread copies.
        self._groups = [
            _Tensors([tensors[place] for place in group], group) for group in _groups(small, targets)
        ]
        self._large = _Tensors([tensors[place] for place in large], large)
        # torch and numpy have no common dtype for these.
        self._odd = [place for place, tensor in enumerate(tensors) if tensor is None]
        _lock_pages(values, targets)

    def __call__(self, values: Sequence[Any], parallel_copy: ParallelCopy) -> None:
        """Copy values; those that are being computed are waited for.

        Raises:
            TypeError: A dtype is another.
            ValueError: A shape is another.
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
        # A thread has streams of its own on a device, where it would not wait for what is being computed.
        if jobs and all(values[place].is_cpu for group in self._groups for place in group.places):
            parallel_copy(jobs, nbytes=self._nbytes)
        else:
            for job in jobs:
                job()
        _copy(self._large, values)

    def _copy_from(self, devices: set[Any], values: Sequence[Any]) -> None:
        import torch

        with ExitStack() as waiting:
            # For each, whatever happens with another: nothing is left on its way into the memory.
            for device in devices:
                waiting.callback(torch.cuda.synchronize, device)
            for tensors in (*self._groups, self._large):
                _copy(tensors, values, non_blocking=True)


def _cuda_devices(values: Sequence[Any]) -> set[Any]:
    return {value.device for value in values if getattr(value, "is_cuda", False)}


def _lock_pages(values: Sequence[Any], targets: Sequence[Array]) -> None:
    import torch

    devices = [device.index for device in _cuda_devices(values)]
    # AMD's devices are called CUDA too, and have another driver.
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
    """Copy in one call where this torch has it: a thousand small ones take a millisecond and not ten."""
    import torch

    mine = [values[place] for place in tensors.places]
    together = getattr(torch, "_foreach_copy_", None)
    # Each thread has its own idea of whether gradients are wanted.
    with torch.no_grad():
        if together is not None and mine:
            together(tensors.targets, mine, non_blocking)
            return
        for target, value in zip(tensors.targets, mine, strict=True):
            target.copy_(value, non_blocking)


def _as_tensor(value: Any, target: Array) -> Any:
    """Return a target as a tensor of the value's dtype, or None where torch and numpy have none in common."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return None
    if str(value.dtype).removeprefix("torch.") != target.dtype.name or tuple(value.shape) != target.shape:
        return None
    if value.dtype == torch.bfloat16:
        return torch.from_numpy(target.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(target) if target.dtype.isbuiltin == 1 else None
