"""Refuses values that are not what a place for them was made for: numpy and torch would cast or repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self

_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")


@dataclass(frozen=True, slots=True)
class ArraySpecs:
    """Dtypes and shapes, as the one that has them gives them.

    Example:
        >>> import numpy as np
        >>> ArraySpecs.like([np.zeros(3)]).check([np.ones(1)])
        Traceback (most recent call last):
        ...
        ValueError: a value is not of the shape that its place is for
    """

    dtypes: list[Any]
    shapes: list[Any]

    @classmethod
    def like(cls, ones: Sequence[Any]) -> Self:
        """Expect what these are."""
        return cls(list(map(_dtype_of, ones)), list(map(_shape_of, ones)))

    def check(self, values: Sequence[Any]) -> None:
        """Refuse what is something else.

        Raises:
            TypeError: A dtype is another.
            ValueError: A shape is another.
        """
        if list(map(_dtype_of, values)) != self.dtypes:
            raise TypeError("a value is not of the dtype that its place is for")
        if list(map(_shape_of, values)) != self.shapes:
            raise ValueError("a value is not of the shape that its place is for")
