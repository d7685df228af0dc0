"""Attributes of a data source that may change from epoch to epoch: generators, counters, orders of indices.

`run_time_attributes` selects them by type, not by name: random generators, single numbers and text, and one-dimensional
arrays and lists of integers. It skips the data itself (floats, arrays of two or more dimensions, other objects).
`digest_of` shows if a value has changed, `copy_of` captures it, and `restore_attribute` restores it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import xxhash

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.state import generators
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.system.arrays import Array

# Larger arrays and lists of integers are skipped: reading them would slow down each save noticeably.
LARGEST_NBYTES = 256 * 1024**2

_SCALARS = (type(None), bool, int, float, complex, str, bytes)


def run_time_attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the attributes that may change, including integers of any size."""
    keras_settings = _py_dataset_settings()
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        if name in keras_settings:
            continue
        if generators.kind_of(value) is not None or is_watched(value):
            yield name, value


def is_watched(value: Any) -> bool:
    """Return True if `digest_of` can show a change of the value."""
    return is_scalar(value) or nbytes_of_indices(value) is not None


def is_scalar(value: Any) -> bool:
    """Return True if a value is a single number, text or None."""
    return type(value) in _SCALARS or isinstance(value, np.number | np.bool_)


def nbytes_of_indices(value: Any) -> int | None:
    """Return the size of an array or list of integers in bytes, or None for everything else.

    Example:
        >>> nbytes_of_indices(np.arange(4)), nbytes_of_indices([3, 1]), nbytes_of_indices([0.5])
        (32, 16, None)
    """
    if type(value) is list:
        # Check the first item first: lists of other things are then not iterated over.
        return (
            8 * len(value)
            if not value or (type(value[0]) is int and set(map(type, value)) == {int})
            else None
        )
    array = _integers(value)
    return None if array is None else array.nbytes


def _integers(value: Any) -> Array | None:
    """Return a one-dimensional array or tensor of integers as a numpy array, or None for everything else."""
    if len(getattr(value, "shape", ())) != 1 or isinstance(value, np.memmap):
        return None
    try:
        array = as_numpy(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array if array is not None and array.dtype.kind in "iu" else None


@functools.cache
def _py_dataset_settings() -> frozenset[str]:
    """Return the names of the attributes that Keras sets on every `PyDataset` (workers, queue size)."""
    return frozenset(vars(keras.utils.PyDataset()))


def digest_of(value: Any) -> str:
    """Return a text that changes with the value: the value itself, or a digest of an array or list.

    Example:
        >>> digest_of(3), digest_of([3, 1]) == digest_of([1, 3])
        ('3', False)
    """
    if type(value) is list:
        try:
            value = np.array(value, np.int64)
        except OverflowError:
            value = np.array([hex(number) for number in value])
        return f"list {len(value)} {xxhash.xxh3_128_hexdigest(value.tobytes())}"
    array = _integers(value)
    if array is None:
        return repr(value)
    return f"{array.dtype} {len(array)} {xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)}"


def copy_of(value: Any) -> Any:
    """Return a copy of an attribute's value that later changes do not affect; a generator's state."""
    state = generators.state_of(value)
    if state is not None:
        return state
    if type(value) is list:
        return value.copy()
    array = _integers(value)
    return value if array is None else array.copy()


def restore_attribute(holder: Any, name: str, value: Any) -> str | None:
    """Set an attribute to a value of `copy_of`, in place if possible, so that other references see it too.

    Returns:
        The reason why it could not be set, or None.
    """
    live = getattr(holder, name, None)
    if isinstance(value, GeneratorState):
        try:
            value.apply(live)
        except InvalidArgumentError as error:
            return f"{error.reason}, and it is {error.value}"
        return None
    if not is_scalar(value) and _set_in_place(live, value):
        return None
    if generators.kind_of(live) is not None:
        return f"the saved value is {value!r}, and it is a random generator"
    setattr(holder, name, _as_type_of(live, value))
    return None


def _set_in_place(live: Any, value: Any) -> bool:
    if type(live) is list and type(value) is list:
        live[:] = value
        return True
    array = _integers(live)
    if array is None or not isinstance(value, np.ndarray):
        return False
    if array.shape != value.shape or array.dtype != value.dtype:
        return False
    if array is live and array.flags.writeable:
        array[...] = value
        return True
    if hasattr(live, "copy_"):  # a torch tensor on any device
        live.copy_(_as_type_of(live, value))
        return True
    return False


def _as_type_of(live: Any, value: Any) -> Any:
    """Return a copy of a saved array as the live value's type: torch tensor, backend tensor or numpy array."""
    if not isinstance(value, np.ndarray):
        return value
    if hasattr(live, "copy_"):
        import torch

        return torch.from_numpy(value.copy())
    return keras.ops.convert_to_tensor(value) if keras.ops.is_tensor(live) else value.copy()
