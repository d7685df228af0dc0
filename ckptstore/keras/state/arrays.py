"""Values of live Keras variables as numpy arrays, without a copy where numpy can view the memory.

Only public interfaces of Keras, numpy and torch are used here. `backend_arrays` does the same without importing Keras.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import keras
import ml_dtypes
import numpy as np

from ckptstore.keras.private import raw_values
from ckptstore.keras.state.backend_arrays import torch_array, torch_views
from ckptstore.keras.state.replicas import ReplicaValue, cross_replica_array
from ckptstore.keras.state.shards import is_on_several_devices, sharded_array, spans_processes
from ckptstore.system.arrays import Array

# Values of a variable that are checked for NaN.
_CHECKED = 4096


def shape_and_dtype(value: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and numpy dtype of a value, without reading it."""
    if isinstance(value, keras.Variable | ReplicaValue):
        # Not the variable's own dtype: JAX without 64-bit types keeps a float64 variable as float32.
        value = value.value
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = np.asarray(value)
    dtype = value.dtype
    if not isinstance(dtype, np.dtype):
        name = keras.backend.standardize_dtype(dtype)
        dtype = np.dtype(getattr(ml_dtypes, name, name))
    return tuple(int(size) for size in value.shape), dtype


def host_array(value: Any) -> Array:
    """Return a value as a numpy array in C order: a view of the live memory where possible.

    A view is valid until the next training step; copy it to keep it longer.
    """
    if isinstance(value, keras.Variable | ReplicaValue):
        value = value.value
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, order="C")
    if keras.backend.backend() == "torch" and hasattr(value, "detach"):
        return torch_array(value)
    if keras.backend.backend() == "jax":
        return _jax_array(value)
    reduced = cross_replica_array(value)
    return np.asarray(keras.ops.convert_to_numpy(value), order="C") if reduced is None else reduced


def _jax_array(value: Any) -> Array:
    return sharded_array(value) if is_on_several_devices(value) else np.asarray(value, order="C")


def host_arrays(values: Iterable[Any]) -> Iterator[Array]:
    """Return `host_array` of each value, in a third of the time; values that need a copy are copied one at a time.

    Example:
        >>> [array.tolist() for array in host_arrays([np.ones(1), np.zeros(2)])]
        [[1.0], [0.0, 0.0]]
    """
    found = raw_values(values)
    if keras.backend.backend() == "jax":
        if any(map(is_on_several_devices, found)):
            return map(_jax_array, found)
        # All at once: JAX keeps the host copy with the array in any case.
        return iter([np.asarray(value, order="C") for value in found])
    if keras.backend.backend() == "torch":
        views = torch_views(found)
        return (host_array(value) if view is None else view for value, view in zip(found, views, strict=True))
    return map(host_array, found)


def first_not_finite(variables: Iterable[Any]) -> str | None:
    """Return the path of the first variable with NaN or an infinity among its first 4,096 values, or None.

    A step that spoils weights spoils all of them, so the rest of a large variable need not be read. Of a variable that
    several processes share, each looks at a part of its own.
    """
    for variable in variables:
        (value,) = raw_values([variable])
        found = host_array(value.addressable_data(0) if spans_processes(value) else variable)
        if not _all_finite(found.reshape(-1)[:_CHECKED]):
            return str(variable.path)
    return None


def _all_finite(values: Array) -> bool:
    # A finite sum of squares proves it in a third of the time; it may also overflow.
    if values.dtype.char in "fd" and math.isfinite(values.dot(values)):
        return True
    return bool(np.isfinite(values.astype(np.float32)).all())


def stable_value(variable: Any) -> Any:
    """Return a variable's value in a form that later assignments do not change; a copy is in host memory."""
    value = variable.value
    if keras.backend.backend() == "jax":
        return value  # immutable: the reference is enough
    if hasattr(value, "detach"):
        return value.detach().to("cpu", copy=True)
    return np.array(host_array(value), copy=True)


def independent_copies(variables: Sequence[Any]) -> list[Any]:
    """Return copies of variables' values that a later step neither changes nor reuses; does not wait for them.

    On JAX a step reuses the memory of the values that it replaces. There one computation copies all values: it starts
    in a tenth of the time that one for each takes. This runs in every epoch with a validation.
    """
    if keras.backend.backend() == "jax":
        return _jax_copies([variable.value for variable in variables])
    return [np.array(host_array(variable)) for variable in variables]


def _jax_copies(values: Sequence[Any]) -> list[Any]:
    # One computation for each set of devices: JAX refuses one with arrays that were placed on different ones.
    by_devices: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        is_placed = getattr(value, "committed", True)
        by_devices.setdefault(frozenset(value.sharding.device_set) if is_placed else None, []).append(place)
    found: dict[int, Any] = {}
    for places in by_devices.values():
        copies = _jitted_copies()([values[place] for place in places])
        found |= dict(zip(places, copies, strict=True))
    return [found[place] for place in range(len(values))]


@cache
def _jitted_copies() -> Any:
    import jax

    # Not the identity: its results would be the very same arrays.
    return jax.jit(lambda values: [jax.numpy.copy(value) for value in values])


def state_nbytes(model: Any) -> int:
    """Return the approximate size in bytes of a model's state with its optimizer's; 0 if it is not built yet."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *getattr(optimizer, "variables", ())]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in map(shape_and_dtype, variables))
