"""A cleanup that runs if a block raises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType


class EndOnError(ContextDecorator):
    """Calls a function with the error if its block, or the function that it decorates, raises; the error continues.

    Cheap enough for the hooks of a batch. It may be used again and again, and within itself.

    Args:
        end: Called with the error; further out it may be called again with the same one.

    Example:
        >>> with EndOnError(lambda error: print("ending:", error)):
        ...     raise ValueError("no such epoch")
        Traceback (most recent call last):
        ...
        ValueError: no such epoch
    """

    def __init__(self, end: Callable[[BaseException], None]) -> None:
        self._end = end

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Call the function if the block has raised."""
        if error is not None:
            self._end(error)
