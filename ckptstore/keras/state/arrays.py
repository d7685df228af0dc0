"""Live Keras values as numpy arrays, without a copy where the memory can be looked at.

Only what Keras, numpy and torch promise is used here.
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
from ckptstore.system.arrays import Array

_LOOKED_AT = 4096


def shape_and_dtype(value: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and numpy dtype of a captured value, without reading it."""
    if isinstance(value, keras.Variable):
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
    """Return a captured value as a numpy array in C order; a view of the live memory where there is one.

    The view is right until the next training step: whoever keeps it longer makes a copy.
    """
    if isinstance(value, keras.Variable):
        value = value.value
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, order="C")
    if keras.backend.backend() == "torch" and hasattr(value, "detach"):
        return torch_array(value)
    if keras.backend.backend() == "jax":
        return np.asarray(value, order="C")
    return np.asarray(keras.ops.convert_to_numpy(value), order="C")


def host_arrays(values: Iterable[Any]) -> Iterator[Array]:
    """Return what `host_array` returns for each value, in a third of the time; one that must be copied when it is due.

    Example:
        >>> [array.tolist() for array in host_arrays([np.ones(1), np.zeros(2)])]
        [[1.0], [0.0, 0.0]]
    """
    found = raw_values(values)
    if keras.backend.backend() == "jax":
        # All at once: what JAX copies from a device stays with the array in any case.
        return iter([np.asarray(value, order="C") for value in found])
    if keras.backend.backend() == "torch":
        views = torch_views(found)
        return (host_array(value) if view is None else view for value, view in zip(found, views, strict=True))
    return map(host_array, found)


def first_not_finite(variables: Iterable[Any]) -> str | None:
    """Return the path of the first variable with NaN or an infinity among its first values, or None.

    A step that spoils weights spoils them all over: the rest of a large one need not be read.
    """
    for variable in variables:
        if not _all_finite(host_array(variable).reshape(-1)[:_LOOKED_AT]):
            return str(variable.path)
    return None


def _all_finite(values: Array) -> bool:
    # A sum of squares is finite, unless it runs over: most often one number tells, in a third of the time.
    if values.dtype.char in "fd" and math.isfinite(values.dot(values)):
        return True
    return bool(np.isfinite(values.astype(np.float32)).all())


def stable_value(variable: Any) -> Any:
    """Return a variable's value so that later assignments do not change it; a copy is in host memory."""
    value = variable.value
    if keras.backend.backend() == "jax":
        return value  # immutable: the reference is enough
    if hasattr(value, "detach"):
        return value.detach().to("cpu", copy=True)
    return np.array(keras.ops.convert_to_numpy(value), copy=True)


def independent_copies(variables: Sequence[Any]) -> list[Any]:
    """Return copies of variables' values that a later step neither changes nor takes over; waits for none.

    On JAX a step is given the memory of the values that it replaces. There all are copied by one computation, which is
    begun in a tenth of the time that one for each takes: it comes in every epoch that is validated.
    """
    if keras.backend.backend() == "jax":
        return list(_jax_copies()([variable.value for variable in variables]))
    return [np.array(host_array(variable)) for variable in variables]


@cache
def _jax_copies() -> Any:
    import jax

    # Not the identity, whose results would be the very arrays that it is given.
    return jax.jit(lambda values: [jax.numpy.copy(value) for value in values])


def state_nbytes(model: Any) -> int:
    """Return about how many bytes a model's state has, with its optimizer's; 0 for one that is not built yet."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *getattr(optimizer, "variables", ())]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in map(shape_and_dtype, variables))
