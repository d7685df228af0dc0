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


def copy_all(values: Sequence[Any], targets: Sequence[Array]) -> None:
    """Copy values into arrays of their shapes and dtypes; when it returns, none of them is looked at any more.

    Args:
        values: Keras variables, or what `ckptstore.keras_arrays.host_array` takes.
        targets: One array for each, C-contiguous.

    Raises:
        ValueError: A shape is another.
    """
    live = [value.value if isinstance(value, keras.Variable) else value for value in values]
    _COPIES.get(keras.backend.backend(), _copy_each)(live, targets)


def _copy_each(values: Sequence[Any], targets: Sequence[Array]) -> None:
    for value, target in zip(values, targets, strict=True):
        np.copyto(target, host_array(value), casting="no")


def _copy_jax(values: Sequence[Any], targets: Sequence[Array]) -> None:
    import jax

    jax.block_until_ready([value for value in values if isinstance(value, jax.Array)])
    for value in values:
        # Arrays in host memory are looked at where they lie.
        if isinstance(value, jax.Array) and next(iter(value.devices())).platform != "cpu":
            value.copy_to_host_async()
    _copy_each(values, targets)


def _copy_torch(values: Sequence[Any], targets: Sequence[Array]) -> None:
    import torch

    with torch.no_grad():
        plain: list[tuple[Any, Any]] = []
        for value, target in zip(values, targets, strict=True):
            found = _as_tensors(torch, value, target)
            if found is None:
                np.copyto(target, host_array(value), casting="no")
            else:
                plain.append(found)
        for target, value in plain:
            # From a device, into memory that is not pinned: it waits by itself.
            target.copy_(value, non_blocking=False)


def _as_tensors(torch: Any, value: Any, target: Array) -> tuple[Any, Any] | None:
    """Return target and value as tensors of one dtype that numpy knows, or None where it knows none."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return None
    if str(value.dtype).removeprefix("torch.") != target.dtype.name:
        return None
    if value.dtype == torch.bfloat16:
        return torch.from_numpy(target.view(np.int16)), value.detach().view(torch.int16)
    if target.dtype.isbuiltin != 1:
        return None
    return torch.from_numpy(target), value.detach()


_COPIES = {"jax": _copy_jax, "torch": _copy_torch}
