"""What the trainer knows of a worker, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptstore.background.handoff import Token
from ckptstore.background.worker import Outcome
from ckptstore.system.shared_memory import Memory

# What a trainer says to the worker in another process; the second with the number of a letter behind it.
FINISH, HURRY = b"finish", b"hurry "


@dataclass(frozen=True, slots=True)
class Place:
    """Where a snapshot lies from its copy to its commit."""

    memory: Memory
    token: Token


class Link(Protocol):
    """A worker that takes letters from places, in the order in which they were posted.

    Attributes:
        outlives: True where it commits what it holds even when the trainer is killed.
    """

    outlives: bool

    def post(self, place: int) -> None:
        """Give a place, with a letter in it, to the worker."""

    def hurry(self, number: int) -> None:
        """Let it not rest before letters up to a number; see `ckptstore.background.worker.REST_S`."""

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return what was done since, oldest first.

        Args:
            timeout_s: How long to wait for the first; None for as long as the worker is alive.
        """

    def is_alive(self) -> bool:
        """Return False where it has died, and no more outcomes will come."""

    def last_words(self) -> str:
        """Return what is known of its death."""

    def finish(self) -> list[Outcome]:
        """End it, after what was posted; returns when it is gone, and with what was not heard of until then."""

    def abandon(self) -> None:
        """Let it finish alone."""
