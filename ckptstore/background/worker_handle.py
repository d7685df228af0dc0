"""What the trainer knows of a worker, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptstore.background.handoff import Handoff
from ckptstore.background.worker import Outcome
from ckptstore.system.shared_memory import SharedMemory

# What a trainer says to the worker in another process; the second with the number of a message behind it.
FINISH, FLUSH_UP_TO = b"finish", b"flush_up_to "


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a snapshot lies from its copy to its commit."""

    memory: SharedMemory
    handoff: Handoff


class WorkerHandle(Protocol):
    """A worker that takes messages from slots, in the order in which they were posted.

    Attributes:
        survives_trainer: True where it commits what it holds even when the trainer is killed.
    """

    survives_trainer: bool

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker."""

    def flush_up_to(self, number: int) -> None:
        """Let it not rest before messages up to a number; see `ckptstore.background.worker.REST_S`."""

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return what was done since, oldest first.

        Args:
            timeout_s: How long to wait for the first; None for as long as the worker is alive.
        """

    def is_alive(self) -> bool:
        """Return False where it has died, and no more outcomes will come."""

    def exit_reason(self) -> str:
        """Return what is known of its death."""

    def finish(self) -> list[Outcome]:
        """End it, after what was posted; returns when it is gone, and with what was not heard of until then."""

    def detach(self) -> None:
        """Let it finish alone."""
