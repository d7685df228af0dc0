"""Whose a slot for snapshots is: it is given away by posting a handoff, and belongs to whoever takes that.

Taking is one system call that only one process can win: so a snapshot that waits can be withdrawn by the trainer or
begun by the writer, and never both.
"""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress
from typing import Protocol


class Handoff(Protocol):
    """At most one handoff, posted by one and taken by one of two."""

    descriptor: int | None

    def give(self) -> None:
        """Give the slot away."""

    def is_pending(self) -> bool:
        """Return True where the slot is given away, and nobody has taken it; another may do so at any moment."""

    def take(self) -> bool:
        """Return True where the slot was given away, and belongs to the caller from now on."""

    def close(self) -> None:
        """Let go of it."""


class EventfdHandoff:
    """A handoff between two processes, by eventfd.

    Args:
        descriptor: Of an eventfd that another process has made; None to make one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.descriptor: int | None = descriptor

    def give(self) -> None:
        """Give the slot away."""
        assert self.descriptor is not None
        os.eventfd_write(self.descriptor, 1)

    def is_pending(self) -> bool:
        """Return True where the slot is given away, and nobody has taken it; another may do so at any moment."""
        assert self.descriptor is not None
        return bool(select.select([self.descriptor], [], [], 0)[0])

    def take(self) -> bool:
        """Return True where the slot was given away, and belongs to the caller from now on."""
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


class LocalHandoff:
    """A handoff between two threads.

    Example:
        >>> handoff = LocalHandoff()
        >>> handoff.take()
        False
        >>> handoff.give()
        >>> handoff.is_pending(), handoff.take(), handoff.take()
        (True, True, False)
    """

    descriptor: int | None = None

    def __init__(self) -> None:
        # Each call is one step of the interpreter's, and no lock that an interrupt could leave taken.
        self._posted: deque[None] = deque()

    def give(self) -> None:
        """Give the slot away."""
        self._posted.append(None)

    def is_pending(self) -> bool:
        """Return True where the slot is given away, and nobody has taken it; another may do so at any moment."""
        return bool(self._posted)

    def take(self) -> bool:
        """Return True where the slot was given away, and belongs to the caller from now on."""
        try:
            self._posted.pop()
        except IndexError:
            return False
        return True

    def close(self) -> None:
        """Do nothing."""
