"""Stores that this process has opened for writing: tells a store that was removed since from one that is new."""

from __future__ import annotations

from pathlib import Path

_opened: set[Path] = set()


def note(path: Path) -> None:
    """Remember that a store was opened for writing."""
    _opened.add(path)


def forget(path: Path) -> None:
    """Forget a store, which is removed on purpose."""
    _opened.discard(path)


def was_opened(path: Path) -> bool:
    """Return True if this process has opened a store for writing, and did not remove it.

    Example:
        >>> was_opened(Path("/nowhere"))
        False
    """
    return path in _opened
