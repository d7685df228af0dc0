"""The trainer's view of a worker, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptstore.background.handoff import Handoff
from ckptstore.background.worker import Outcome
from ckptstore.system.shared_memory import SharedMemory

# Commands of the trainer to a worker process; a message number follows the second.
FINISH, FLUSH_UP_TO = b"finish", b"flush up to "


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a snapshot from its copy to its commit: memory, and the handoff that says who owns it."""

    memory: SharedMemory
    handoff: Handoff


class WorkerHandle(Protocol):
    """A worker that takes messages from slots, in the order in which the slots were given.

    Attributes:
        survives_trainer: True if it commits what it holds even when the trainer is killed.
    """

    survives_trainer: bool

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker."""

    def flush_up_to(self, number: int) -> None:
        """Commit messages up to a number without a pause; see `ckptstore.background.worker.COMMIT_INTERVAL_S`."""

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return the outcomes since the last call, oldest first.

        Args:
            timeout_s: How long to wait for the first; None for as long as the worker is alive.
        """

    def is_alive(self) -> bool:
        """Return False if the worker has died, and no more outcomes will come."""

    def exit_reason(self) -> str:
        """Return why it has died, as the beginning of a sentence."""

    def waiting_hint(self) -> str:
        """Return what a user can do while its work takes long, to be added to a line; empty where that is nothing."""

    def finish(self) -> list[Outcome]:
        """End the worker after what it was given; returns, when it is gone, the outcomes not reported before."""

    def detach(self) -> None:
        """Let the worker finish its work alone."""
