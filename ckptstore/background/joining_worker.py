"""Writes this process's members of saves that process 0 leads; the worker of every other process of a job."""

from __future__ import annotations

from pathlib import Path

from ckptstore.background.message import MessageReader
from ckptstore.background.worker import Outcome, failed_outcome
from ckptstore.commit.joined_save import JoinedSave
from ckptstore.distributed.session import JobSession
from ckptstore.storage.layout import Layout
from ckptstore.system.shared_memory import SharedMemory


class JoiningWorker:
    """Takes part in one save after the other; opens no manifest, and takes no lock.

    Args:
        root: The store's directory.
        memories: The memory of each slot.
        job: The fit's processes.

    Attributes:
        idle_until: Always now: process 0 decides when a save is made.
    """

    idle_until = 0.0

    def __init__(self, root: Path, memories: tuple[SharedMemory, ...], job: JobSession) -> None:
        self._readers = [MessageReader(memory) for memory in memories]
        self._joined = JoinedSave(job, Layout(root))

    def commit(self, slot: int, *, maybe_committed: bool = False) -> Outcome:
        """Take part in the save of the message in a slot; see `ckptstore.background.worker.Worker.commit`."""
        number = 0
        try:
            message = self._readers[slot].read()
            number = message.number
            checkpoint = self._joined.save(message.snapshot, message.request)
        except Exception as error:
            return failed_outcome(number, error)
        return Outcome(number=number, checkpoint=checkpoint)

    def remove(self) -> Outcome | None:
        """Process 0 alone removes."""
        return None

    def close(self) -> None:
        """It has opened nothing."""
