"""Whose a place for snapshots is: it is given away by posting a token, and belongs to whoever takes that.

Taking is one system call that only one process can win: so a snapshot that waits can be withdrawn by the trainer or
begun by the writer, and never both.
"""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress
from typing import Protocol


class Token(Protocol):
    """At most one token, posted by one and taken by one of two."""

    descriptor: int | None

    def post(self) -> None:
        """Give the place away."""

    def is_posted(self) -> bool:
        """Return True where the place is given away, and nobody has taken it; another may do so at any moment."""

    def take(self) -> bool:
        """Return True where the place was given away, and belongs to the caller from now on."""

    def close(self) -> None:
        """Let go of it."""


class EventToken:
    """A token between two processes, by eventfd.

    Args:
        descriptor: Of an eventfd that another process has made; None to make one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.descriptor: int | None = descriptor

    def post(self) -> None:
        """Give the place away."""
        assert self.descriptor is not None
        os.eventfd_write(self.descriptor, 1)

    def is_posted(self) -> bool:
        """Return True where the place is given away, and nobody has taken it; another may do so at any moment."""
        assert self.descriptor is not None
        return bool(select.select([self.descriptor], [], [], 0)[0])

    def take(self) -> bool:
        """Return True where the place was given away, and belongs to the caller from now on."""
        assert self.descriptor is not None
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


class LocalToken:
    """A token between two threads.

    Example:
        >>> token = LocalToken()
        >>> token.take()
        False
        >>> token.post()
        >>> token.is_posted(), token.take(), token.take()
        (True, True, False)
    """

    descriptor: int | None = None

    def __init__(self) -> None:
        # Each call is one step of the interpreter's, and no lock that an interrupt could leave taken.
        self._posted: deque[None] = deque()

    def post(self) -> None:
        """Give the place away."""
        self._posted.append(None)

    def is_posted(self) -> bool:
        """Return True where the place is given away, and nobody has taken it; another may do so at any moment."""
        return bool(self._posted)

    def take(self) -> bool:
        """Return True where the place was given away, and belongs to the caller from now on."""
        try:
            self._posted.pop()
        except IndexError:
            return False
        return True

    def close(self) -> None:
        """Do nothing."""
