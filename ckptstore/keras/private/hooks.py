"""Hooks over methods of single objects, not over their classes, all taken away at once.

What is laid over a method stands in the object's own dictionary, where Python looks first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_NOTHING = object()


class Hooks:
    """The hooks of one fit."""

    def __init__(self) -> None:
        self._hooked: list[tuple[Any, str, Any, Any]] = []

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Lay what `make` returns, given the method as it was, over a method of one object."""
        self.replace_attribute(owner, name, make(getattr(owner, name)))

    def replace_attribute(self, owner: Any, name: str, laid: Any) -> None:
        """Lay a value over an attribute of one object."""
        before = owner.__dict__.get(name, _NOTHING)
        owner.__dict__[name] = laid
        self._hooked.append((owner, name, laid, before))

    def release(self) -> None:
        """Take all hooks away; may be repeated."""
        hooked, self._hooked = self._hooked, []
        for owner, name, laid, before in reversed(hooked):
            if owner.__dict__.get(name) is not laid:
                continue
            if before is _NOTHING:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before
