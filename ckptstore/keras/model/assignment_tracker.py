"""Tells which variables were assigned to since, without copies of the large ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import xxhash

from ckptstore.keras.state.arrays import host_array, shape_and_dtype, stable_value

# Where a value has to be copied to be kept, one of at most so many bytes is: it can be put back.
_SMALL = 65_536


@dataclass(frozen=True, slots=True)
class _Mark:
    variable: Any
    token: Any
    value: Any


class AssignmentTracker:
    """The values of variables at one moment.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Iterable[Any]) -> None:
        if keras.backend.backend() == "jax":
            # Immutable: another value is another object, and a reference keeps it.
            self._marks = [_Mark(one, id(value := one.value), value) for one in variables]
        else:
            self._marks = [_Mark(one, _token(one), _small_copy(one)) for one in variables]

    def revert(self) -> bool:
        """Give variables that were assigned to their values back; returns whether one is left whose value is gone."""
        whole = True
        for mark in self._marks:
            if mark.token == _token(mark.variable):
                continue
            if mark.value is None or _is_gone(mark.value):
                whole = False
            else:
                mark.variable.assign(mark.value)
        return not whole


def _small_copy(variable: Any) -> Any:
    shape, dtype = shape_and_dtype(variable)
    return stable_value(variable) if math.prod(shape) * dtype.itemsize <= _SMALL else None


def _token(variable: Any) -> Any:
    value = variable.value
    backend = keras.backend.backend()
    if backend == "jax":
        return id(value)
    if backend == "torch":
        return value.data_ptr(), value._version
    return xxhash.xxh3_128_digest(host_array(variable).tobytes())


def _is_gone(value: Any) -> bool:
    # On JAX a training step is given the memory of the values that it replaces.
    return keras.backend.backend() == "jax" and bool(value.is_deleted())
