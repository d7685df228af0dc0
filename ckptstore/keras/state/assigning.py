"""Assigning host values to live variables: on JAX they go where the present ones lie, and no other process is asked."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ckptstore.keras import private
from ckptstore.keras.state.shards import spans_processes, spread


def assign(variable: Any, value: Any) -> None:
    """Assign a value to a variable of any kind.

    Example:
        >>> import keras
        >>> variable = keras.Variable([1.0, 2.0])
        >>> assign(variable, np.array([3.0, 4.0], np.float32))
        >>> keras.ops.convert_to_numpy(variable.value).tolist()
        [3.0, 4.0]
    """
    variable.assign(shared(variable, value))


def assign_in_place(variable: Any, value: Any) -> None:
    """Assign a value to a variable of any kind, also where a script has put the present one on other devices."""
    with private.kept_placements([variable]):
        assign(variable, value)


def shared(variable: Any, value: Any) -> Any:
    """Return a value for a variable of JAX that several processes share; for any other variable, the value itself.

    Args:
        variable: The variable.
        value: All of its value, which every process has; or an array that is shared already.
    """
    sharding = private.sharding_across_processes(variable)
    if sharding is None or spans_processes(value):
        return value
    return spread(np.asarray(value).astype(variable.value.dtype, copy=False), sharding)


def alone() -> AbstractContextManager[None]:
    """Return a context in which Keras makes variables, and assigns to them, without asking other processes."""
    return private.placed_alone(spread)
