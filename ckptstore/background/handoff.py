"""Ownership of a snapshot slot, handed atomically from the trainer to the worker.

The trainer gives a slot away, and it belongs to the side that takes it. Taking is one system call that only one process
can win: a snapshot that waits is either withdrawn by the trainer or begun by the worker, never both.
"""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress
from typing import Protocol


class Handoff(Protocol):
    """The handoff of one slot: given by the trainer, taken once, by either side.

    Attributes:
        descriptor: Of the eventfd, to be passed to another process; None between threads.
    """

    descriptor: int | None

    def give(self) -> None:
        """Give the slot away."""

    def is_pending(self) -> bool:
        """Return True while the slot is given away and not taken; another may take it at any moment."""

    def take(self) -> bool:
        """Return True if the slot was given away; it then belongs to the caller."""

    def close(self) -> None:
        """Close the descriptor. May be called again."""


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
        """Return True while the slot is given away and not taken; another may take it at any moment."""
        assert self.descriptor is not None
        return bool(select.select([self.descriptor], [], [], 0)[0])

    def take(self) -> bool:
        """Return True if the slot was given away; it then belongs to the caller."""
        assert self.descriptor is not None
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptor. May be called again."""
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
        # Each call is one step of the interpreter; there is no lock that an interrupt could leave held.
        self._given: deque[None] = deque()

    def give(self) -> None:
        """Give the slot away."""
        self._given.append(None)

    def is_pending(self) -> bool:
        """Return True while the slot is given away and not taken; another may take it at any moment."""
        return bool(self._given)

    def take(self) -> bool:
        """Return True if the slot was given away; it then belongs to the caller."""
        try:
            self._given.pop()
        except IndexError:
            return False
        return True

    def close(self) -> None:
        """Do nothing: there is no descriptor."""
