"""Check of values against the targets that they are copied to; numpy and torch would silently cast or broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self

_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")


@dataclass(frozen=True, slots=True)
class ArraySpecs:
    """Dtypes and shapes that values must have, in the backend's own types.

    Example:
        >>> import numpy as np
        >>> ArraySpecs.like([np.zeros(3)]).check([np.ones(1)])
        Traceback (most recent call last):
        ...
        ValueError: a value does not have the shape of its target
    """

    dtypes: list[Any]
    shapes: list[Any]

    @classmethod
    def like(cls, values: Sequence[Any]) -> Self:
        """Return the specs of these values."""
        return cls(list(map(_dtype_of, values)), list(map(_shape_of, values)))

    def check(self, values: Sequence[Any]) -> None:
        """Check the dtypes and shapes of values.

        Raises:
            TypeError: A dtype differs.
            ValueError: A shape differs.
        """
        if list(map(_dtype_of, values)) != self.dtypes:
            raise TypeError("a value does not have the dtype of its target")
        if list(map(_shape_of, values)) != self.shapes:
            raise ValueError("a value does not have the shape of its target")
