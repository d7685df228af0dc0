"""Tracker of assignments to variables, without copies of the large ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import xxhash

from ckptstore.keras.state.arrays import host_array, shape_and_dtype, stable_value

# Where keeping a value takes a copy, values of at most this many bytes are copied, and can be restored.
_SMALL = 65_536


@dataclass(frozen=True, slots=True)
class _TrackedVariable:
    """A variable, the identity of its value, and the value or None if it was not kept."""

    variable: Any
    identity: Any
    value: Any


class AssignmentTracker:
    """Finds variables that were assigned to since this object was made, and restores them.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Iterable[Any]) -> None:
        if keras.backend.backend() == "jax":
            # Values are immutable: a new value is a new object, and a reference keeps the old one.
            self._tracked = [
                _TrackedVariable(variable, id(value := variable.value), value) for variable in variables
            ]
        else:
            self._tracked = [
                _TrackedVariable(variable, _identity(variable), _small_copy(variable))
                for variable in variables
            ]

    def revert(self) -> bool:
        """Restore the variables that were assigned to; return True if the value of one is no longer available."""
        lost = False
        for tracked in self._tracked:
            if tracked.identity == _identity(tracked.variable):
                continue
            if tracked.value is None or _is_deleted(tracked.value):
                lost = True
            else:
                tracked.variable.assign(tracked.value)
        return lost


def _small_copy(variable: Any) -> Any:
    shape, dtype = shape_and_dtype(variable)
    return stable_value(variable) if math.prod(shape) * dtype.itemsize <= _SMALL else None


def _identity(variable: Any) -> Any:
    """Return something that differs once the variable was assigned to."""
    value = variable.value
    backend = keras.backend.backend()
    if backend == "jax":
        return id(value)
    if backend == "torch":
        return value.data_ptr(), value._version
    return xxhash.xxh3_128_digest(host_array(variable).tobytes())


def _is_deleted(value: Any) -> bool:
    # On JAX a training step reuses the memory of the values that it replaces.
    return keras.backend.backend() == "jax" and bool(value.is_deleted())
