"""Copies the values of many variables to host memory at once, so that a training step waits for one copy alone.

All copies from a device are on their way before the first is waited for. A value that is still being computed is
waited for: what is copied is the state of one instant, after the last step that was begun. Several cores copy where
one would not use all that the memory can do: pieces of large arrays, and on torch groups of small ones too, which one
call copies without the interpreter. On JAX a small array goes straight into shared memory, by the buffer protocol:
of a thousand copies, a seventh of the time went into making a numpy array of each.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import keras
import numpy as np

from ckptstore.background.side_by_side import PIECE, Job, SideBySide, copies
from ckptstore.formats.snapshot import Array
from ckptstore.keras_arrays import host_array
from ckptstore.keras_private import raw_values

# As many lists of targets are known as there are places.
_PLACES = 4
# Bytes from which on numpy copies an array in pieces.
_LARGE = 1 << 20
# Elements from which on torch itself copies a tensor with several threads.
_LARGE_FOR_TORCH = 1 << 15

_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")


class Copier:
    """Copies the same variables again and again, each time into one of few places.

    Args:
        values: Keras variables, or what `ckptstore.keras_arrays.host_array` takes.

    Attributes:
        values: The same.

    Example:
        >>> value, target = np.array([1.0, 2.0]), np.zeros(2)
        >>> copier = Copier([value])
        >>> copier([target])
        >>> target.tolist()
        [1.0, 2.0]
    """

    def __init__(self, values: Sequence[Any]) -> None:
        # A layer may save a plain number, or a list.
        self.values = tuple(value if hasattr(value, "shape") else np.asarray(value) for value in values)
        self._side_by_side = SideBySide()
        # What is known of targets, by their identity; they are kept, so that it is no other's.
        self._known: dict[int, tuple[Sequence[Array], Any]] = {}

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy the present values; when it returns, none of them is looked at any more.

        Args:
            targets: One array for each, of its shape and dtype, C-contiguous. A list that comes again is known.

        Raises:
            ValueError: A shape is another.
            TypeError: A dtype is another.
        """
        backend = keras.backend.backend()
        if backend == "jax":
            self._copy_jax(raw_values(self.values), targets)
        elif backend == "torch":
            self._copy_torch(raw_values(self.values), targets)
        else:
            _copy_each(self.values, targets)

    def _of(self, targets: Sequence[Array], find: Callable[[], Any]) -> Any:
        """Return what `find` returned when these targets first came."""
        known = self._known.get(id(targets))
        if known is None:
            known = targets, find()
            self._known = {**(self._known if len(self._known) < _PLACES else {}), id(targets): known}
        return known[1]

    def _copy_jax(self, values: Sequence[Any], targets: Sequence[Array]) -> None:
        import jax

        if jax.default_backend() != "cpu":
            for value in values:
                # Arrays in host memory are looked at where they lie.
                if isinstance(value, jax.Array) and next(iter(value.devices())).platform != "cpu":
                    value.copy_to_host_async()
        plan: _JaxPlan = self._of(targets, lambda: _jax_plan(targets))
        plan.check(values)
        for part in plan.small:
            part([values[place] for place in part.places])
        for place in plan.others:
            targets[place][...] = values[place]
        large: list[Job] = []
        for place in plan.large:
            large += copies(targets[place], np.asarray(values[place]))
        self._side_by_side(large, nbytes=plan.nbytes)

    def _copy_torch(self, values: Sequence[Any], targets: Sequence[Array]) -> None:
        plan: _TorchPlan = self._of(targets, lambda: _torch_plan(values, targets))
        # A plan knows what fits by what the values were when it was made.
        _check(_dtypes(values) == plan.dtypes, _shapes(values) == plan.shapes)
        # A thread has streams of its own on a device, where it would not wait for what is being computed.
        if plan.groups and all(values[index].is_cpu for group in plan.groups for index in group.places):
            jobs = [partial(_copy_tensors, group, values) for group in plan.groups]
            self._side_by_side(jobs, nbytes=plan.nbytes)
        else:
            for group in plan.groups:
                _copy_tensors(group, values)
        _copy_tensors(plan.others, values)
        _copy_each([values[index] for index in plan.odd], [targets[index] for index in plan.odd])


def _dtypes(values: Sequence[Any]) -> list[Any]:
    return list(map(_dtype_of, values))


def _shapes(values: Sequence[Any]) -> list[Any]:
    return list(map(_shape_of, values))


def _check(dtypes_fit: bool, shapes_fit: bool) -> None:
    if not dtypes_fit:
        raise TypeError("a value is not of the dtype that its place is for")
    if not shapes_fit:
        raise ValueError("a value is not of the shape that its place is for")


def _copy_each(values: Sequence[Any], targets: Sequence[Array]) -> None:
    for value, target in zip(values, targets, strict=True):
        np.copyto(target, host_array(value), casting="no")


# --- JAX -----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Mapped:
    """Small targets in one piece of shared memory.

    Attributes:
        memory: What they lie in; None once one value was found that is no buffer, such as one of several devices.
        parts: Where each lies.
        targets: The same as arrays.
        places: Which of all targets they are.
    """

    memory: mmap.mmap | None
    parts: list[slice]
    targets: list[Array]
    places: list[int]

    def __call__(self, values: Sequence[Any]) -> None:
        """Copy values of their shapes and dtypes."""
        if self.memory is not None:
            try:
                deque(map(self.memory.__setitem__, self.parts, values), maxlen=0)
                return
            # The last is what numpy has for an array that is not in C order.
            except (BufferError, TypeError, ValueError):
                self.memory = None
        for target, value in zip(self.targets, values, strict=True):
            target[...] = value


@dataclass(slots=True, kw_only=True)
class _JaxPlan:
    """How values come into some targets.

    Attributes:
        small: What lies in shared memory, and has a dtype that buffers know.
        others: Small ones that numpy copies.
        large: What is copied in pieces.
        nbytes: Their bytes.
        dtypes: What the values must be.
        shapes: Likewise.
        kinds: Of the values that were last found to be so, what JAX knows of each; a step returns the same again.
    """

    small: list[_Mapped]
    others: list[int]
    large: list[int]
    nbytes: int
    dtypes: list[Any]
    shapes: list[Any]
    kinds: list[Any] | None = None

    def check(self, values: Sequence[Any]) -> None:
        """Refuse what would be cast or repeated; a thousand dtypes and shapes take 0.3 ms to ask for."""
        kinds = [getattr(value, "aval", None) for value in values]
        if kinds != self.kinds or None in kinds:
            _check(_dtypes(values) == self.dtypes, _shapes(values) == self.shapes)
            self.kinds = kinds


def _jax_plan(targets: Sequence[Array]) -> _JaxPlan:
    large = [place for place, target in enumerate(targets) if target.nbytes >= _LARGE]
    small: dict[int, _Mapped] = {}
    others: list[int] = []
    for place, target in enumerate(targets):
        if target.nbytes >= _LARGE:
            continue
        memory: Any = target.base
        # bfloat16 and its like are no dtypes of numpy's own, and none of buffers.
        if not isinstance(memory, mmap.mmap) or target.dtype.isbuiltin != 1 or not target.flags.c_contiguous:
            others.append(place)
            continue
        mapped = small.setdefault(id(memory), _Mapped(memory=memory, parts=[], targets=[], places=[]))
        begin = target.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
        mapped.parts.append(slice(begin, begin + target.nbytes))
        mapped.targets.append(target)
        mapped.places.append(place)
    return _JaxPlan(
        small=list(small.values()),
        others=others,
        large=large,
        nbytes=sum(targets[place].nbytes for place in large),
        dtypes=_dtypes(targets),
        shapes=_shapes(targets),
    )


# --- torch ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Targets as torch sees them, and the places of their values."""

    targets: list[Any]
    places: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TorchPlan:
    """How values come into some targets.

    Attributes:
        groups: Small tensors, in groups that one thread copies.
        nbytes: Their bytes.
        others: What torch copies with several threads by itself.
        odd: Places of what torch and numpy have no common dtype for.
        dtypes: What the values must be.
        shapes: Likewise.
    """

    groups: list[_Tensors]
    nbytes: int
    others: _Tensors
    odd: list[int]
    dtypes: list[Any]
    shapes: list[Any]


def _torch_plan(values: Sequence[Any], targets: Sequence[Array]) -> _TorchPlan:
    tensors = [_as_tensor(*pair) for pair in zip(values, targets, strict=True)]
    plain = [place for place, tensor in enumerate(tensors) if tensor is not None]
    small = [place for place in plain if targets[place].size < _LARGE_FOR_TORCH]
    others = [place for place in plain if targets[place].size >= _LARGE_FOR_TORCH]
    return _TorchPlan(
        groups=[_Tensors([tensors[place] for place in group], group) for group in _groups(small, targets)],
        nbytes=sum(targets[place].nbytes for place in small),
        others=_Tensors([tensors[place] for place in others], others),
        odd=[place for place, tensor in enumerate(tensors) if tensor is None],
        dtypes=_dtypes(values),
        shapes=_shapes(values),
    )


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


def _copy_tensors(tensors: _Tensors, values: Sequence[Any]) -> None:
    """Copy in one call where this torch has it: a thousand small ones take a millisecond and not ten."""
    import torch

    mine = [values[place] for place in tensors.places]
    together = getattr(torch, "_foreach_copy_", None)
    # Each thread has its own idea of whether gradients are wanted.
    with torch.no_grad():
        if together is not None and mine:
            together(tensors.targets, mine)
            return
        for target, value in zip(tensors.targets, mine, strict=True):
            target.copy_(value)


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
