"""The values of variables, as the backend has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


def raw_values(values: Iterable[Any]) -> list[Any]:
    """Return the values of variables, and what is none as it is.

    `Variable.value` looks first for a stateless scope and for autocasting; of a thousand variables that takes
    milliseconds, in which a training step waits. Outside of both it returns ``Variable._value``. In a Keras without
    that, or for a variable that has no value yet, it is asked.
    """
    return [_raw(value) if isinstance(value, keras.Variable) else value for value in values]


def _raw(variable: Any) -> Any:
    value = getattr(variable, "_value", None)
    return variable.value if value is None else value
