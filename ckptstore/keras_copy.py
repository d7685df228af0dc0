"""Copies the values of many variables to host memory at once, so that a training step waits for one copy alone.

All copies from a device are on their way before the first is waited for. A value that is still being computed is
waited for: what is copied is the state of one instant, after the last step that was begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ckptstore.formats.snapshot import Array
from ckptstore.keras_arrays import host_array
from ckptstore.keras_private import raw_values


class Copier:
    """Copies the same variables again and again, each time into one of few places.

    Args:
        values: Keras variables, or what `ckptstore.keras_arrays.host_array` takes.

    Example:
        >>> value, target = np.array([1.0, 2.0]), np.zeros(2)
        >>> copier = Copier([value])
        >>> copier([target])
        >>> target.tolist()
        [1.0, 2.0]
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = tuple(values)
        # What torch sees of the targets, by their identity; as many as there are places.
        self._tensors: dict[int, tuple[Sequence[Array], list[Any]]] = {}

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy the present values; when it returns, none of them is looked at any more.

        Args:
            targets: One array for each, of its shape and dtype, C-contiguous. A list that comes again is known.

        Raises:
            ValueError: A shape is another.
        """
        backend = keras.backend.backend()
        if backend == "jax":
            _copy_jax(raw_values(self._values), targets)
        elif backend == "torch":
            self._copy_torch(raw_values(self._values), targets)
        else:
            _copy_each(self._values, targets)

    def _copy_torch(self, values: Sequence[Any], targets: Sequence[Array]) -> None:
        import torch

        known = self._tensors.get(id(targets))
        if known is None or known[0] is not targets:
            tensors = [_as_tensor(torch, *pair) for pair in zip(values, targets, strict=True)]
            self._tensors = {
                **(self._tensors if len(self._tensors) < _PLACES else {}),
                id(targets): (targets, tensors),
            }
        else:
            tensors = known[1]
        with torch.no_grad():
            plain = [pair for pair in zip(tensors, values, strict=True) if pair[0] is not None]
            if plain:
                _copy_tensors(torch, *map(list, zip(*plain, strict=True)))
            if len(plain) < len(values):
                odd = [place for place, tensor in enumerate(tensors) if tensor is None]
                _copy_each([values[place] for place in odd], [targets[place] for place in odd])


_PLACES = 4


def _copy_each(values: Sequence[Any], targets: Sequence[Array]) -> None:
    for value, target in zip(values, targets, strict=True):
        np.copyto(target, host_array(value), casting="no")


def _copy_jax(values: Sequence[Any], targets: Sequence[Array]) -> None:
    import jax

    arrays = [value for value in values if isinstance(value, jax.Array)]
    jax.block_until_ready(arrays)
    if jax.default_backend() != "cpu":
        for value in arrays:
            # Arrays in host memory are looked at where they lie.
            if next(iter(value.devices())).platform != "cpu":
                value.copy_to_host_async()
    for value, target in zip(values, targets, strict=True):
        np.copyto(target, np.asarray(value, order="C"), casting="no")


def _copy_tensors(torch: Any, targets: list[Any], values: list[Any]) -> None:
    """Copy in one call where this torch has it: a thousand small ones take a millisecond and not ten."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(targets, values)
        return
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def _as_tensor(torch: Any, value: Any, target: Array) -> Any:
    """Return a target as a tensor of the value's dtype, or None where torch and numpy have none in common."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return None
    if str(value.dtype).removeprefix("torch.") != target.dtype.name or tuple(value.shape) != target.shape:
        return None
    if value.dtype == torch.bfloat16:
        return torch.from_numpy(target.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(target) if target.dtype.isbuiltin == 1 else None
