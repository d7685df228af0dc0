"""Tells which variables were assigned to since, without copies of the large ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import xxhash

from ckptstore.keras_arrays import host_array, kept_value, shape_and_dtype

# A variable of at most so many bytes is kept by value, so that it can be put back.
_SMALL = 65_536


@dataclass(frozen=True, slots=True)
class _Mark:
    variable: Any
    token: Any
    value: Any


class Marks:
    """The values of variables at one moment.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Iterable[Any]) -> None:
        self._marks = [_Mark(one, _token(one), _small_value(one)) for one in variables]

    def put_back(self) -> bool:
        """Give small variables that were assigned to their values back; returns whether a large one was changed."""
        whole = True
        for mark in self._marks:
            if not _same(mark.token, _token(mark.variable)):
                if mark.value is None:
                    whole = False
                else:
                    mark.variable.assign(mark.value)
        return not whole


def _small_value(variable: Any) -> Any:
    shape, dtype = shape_and_dtype(variable)
    return kept_value(variable) if math.prod(shape) * dtype.itemsize <= _SMALL else None


def _token(variable: Any) -> Any:
    value = variable.value
    backend = keras.backend.backend()
    if backend == "jax":
        return value  # immutable: another value is another object
    if backend == "torch":
        return value.data_ptr(), value._version
    return xxhash.xxh3_128_digest(host_array(variable).tobytes())


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, tuple | bytes) and bool(one == other))
