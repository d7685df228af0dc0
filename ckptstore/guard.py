"""Lets go of something when a block raises, in little time: hooks are called for every batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType


class Guard(ContextDecorator):
    """Calls a function with the error when its block, or the function that it decorates, raises; the error goes on.

    It may be used again and again, within itself too.

    Args:
        let_go: Called with the error; may be called again with the same one, further out.

    Example:
        >>> with Guard(lambda error: print("letting go:", error)):
        ...     raise ValueError("no such epoch")
        Traceback (most recent call last):
        ...
        ValueError: no such epoch
    """

    def __init__(self, let_go: Callable[[BaseException], None]) -> None:
        self._let_go = let_go

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go where the block has raised."""
        if error is not None:
            self._let_go(error)
