"""Hooks: wrapped methods of single objects, not of their classes, all restored at once.

The wrapper is stored in the object's own ``__dict__``, where Python looks first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Hooks:
    """Wrapped methods and replaced attributes of one fit."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Replace a method of one object with what `make` returns for it."""
        self.replace_attribute(owner, name, make(getattr(owner, name)))

    def replace_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of one object."""
        before = owner.__dict__.get(name, _ABSENT)
        owner.__dict__[name] = value
        self._replaced.append((owner, name, value, before))

    def release(self) -> None:
        """Restore everything; may be called again. What others have replaced since stays."""
        replaced, self._replaced = self._replaced, []
        for owner, name, value, before in reversed(replaced):
            if owner.__dict__.get(name) is not value:
                continue
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before
