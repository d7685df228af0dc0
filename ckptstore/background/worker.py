"""Commits messages into one store; runs in the worker process, or in a thread where there is none."""

from __future__ import annotations

import pickle
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.background.message import MessageReader, SaveMessage
from ckptstore.commit.committer import Committer
from ckptstore.commit.open import open_for_writing
from ckptstore.commit.request import SaveRequest
from ckptstore.commit.retry import with_retries
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.run_lock import RunLock
from ckptstore.system.shared_memory import SharedMemory

if TYPE_CHECKING:
    from ckptstore.commit.led_save import LedSave
    from ckptstore.distributed.session import JobSession

# Seconds from the beginning of one commit to that of the next, after a save that may wait. A commit takes processor
# time from the training, and of snapshots taken every few milliseconds few are worth it.
COMMIT_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one message.

    Attributes:
        number: The message's number.
        checkpoint: The checkpoint that was saved, or None.
        error: What went wrong, or None; a checkpoint may be saved anyway (`UnfinishedSaveError`). An error in
            the removal that follows a save comes as a second outcome of the same number.
        cause: The error's `__cause__`, which an exception loses when it is pickled.
        warnings: Warnings for the user that were issued in another process.
        start_s: Seconds of processor time that the worker process took to start; given with its first outcome.
    """

    number: int
    checkpoint: Checkpoint | None = None
    error: BaseException | None = None
    cause: BaseException | None = None
    warnings: tuple[str, ...] = ()
    start_s: float = 0.0


class Worker:
    """Opens the store when the first message comes, and commits one message after the other.

    Args:
        root: The store's directory.
        memories: The memory of each slot.
        lock: The run's lock and claim; None if nobody has locked a run.
        job: The fit's processes, of which this is process 0; None for a fit of one process.

    Attributes:
        idle_until: When to begin the next commit, on the monotonic clock, if nobody waits for it.
    """

    def __init__(
        self,
        root: Path,
        memories: tuple[SharedMemory, ...],
        lock: RunLock | None = None,
        job: JobSession | None = None,
    ) -> None:
        self.idle_until = 0.0
        self._lock = lock
        self._job = job
        self._number = 0
        self._layout = Layout(root)
        self._readers = [MessageReader(memory) for memory in memories]
        self._manifest: Manifest | None = None
        self._committer: Committer | None = None

    def number(self, slot: int) -> int:
        """Return the number of the message in a slot."""
        return self._readers[slot].number()

    def commit(self, slot: int, *, maybe_committed: bool = False) -> Outcome:
        """Commit the message in a slot; raises only what ends a process. The caller then calls `remove`.

        Args:
            slot: The index of the slot.
            maybe_committed: True if a worker that died may have committed it already.
        """
        number = 0
        try:
            message = self._readers[slot].read()
            number = message.number
            self.idle_until = time.monotonic() + (COMMIT_INTERVAL_S if message.may_wait else 0.0)
            with self._led(message.request) as led:
                checkpoint = with_retries(partial(self._commit, message, maybe_committed, led))
        except Exception as error:
            return failed_outcome(number, error)
        self._number = number
        return Outcome(number=number, checkpoint=checkpoint)

    def remove(self) -> Outcome | None:
        """Remove the checkpoints that the last commit expired, after its outcome was sent; returns a failure."""
        try:
            if self._committer is not None:
                self._committer.remove()
        except Exception as error:
            return failed_outcome(self._number, error)
        return None

    def _led(self, request: SaveRequest) -> AbstractContextManager[LedSave | None]:
        """Return the save by several processes that a request belongs to; nothing in a fit of one process."""
        if self._job is None:
            return nullcontext()
        from ckptstore.commit.led_save import LedSave  # a process that saves alone does not need it

        return LedSave(self._job, request.number_in_job())

    def _commit(self, message: SaveMessage, maybe_committed: bool, led: LedSave | None) -> Checkpoint:
        if self._lock is not None:
            self._lock.keep_in_place()
        committer, manifest = self._opened()
        if maybe_committed:
            # Opening the store has adopted a payload without a row: a row of this save is now its checkpoint.
            before = manifest.checkpoints.saved_at(message.request.run, message.request.created_at)
            if before is not None:
                return before
        return committer.commit(message.snapshot, message.request, removing=False, led=led)

    def _opened(self) -> tuple[Committer, Manifest]:
        if self._committer is None or self._manifest is None:
            claim = None if self._lock is None else self._lock.claim
            self._manifest = open_for_writing(self._layout, create=claim is None)
            if claim is not None:
                self._manifest.runs.write_under(claim)
            self._committer = Committer(self._layout, self._manifest)
        return self._committer, self._manifest

    def close(self) -> None:
        """End the lease and close the manifest."""
        try:
            if self._committer is not None:
                self._committer.close()
        finally:
            if self._manifest is not None:
                self._manifest.close()


def failed_outcome(number: int, error: Exception) -> Outcome:
    """Return the outcome of a message that failed; a checkpoint may be saved anyway."""
    # Every error is reported to the training, whatever its type.
    return Outcome(
        number=number,
        checkpoint=getattr(error, "checkpoint", None),
        error=picklable(error),
        cause=None if error.__cause__ is None else picklable(error.__cause__),
    )


def picklable(error: BaseException) -> BaseException:
    """Return an error that can be sent to another process: itself, or its text if it cannot be pickled.

    Example:
        >>> picklable(ValueError("x"))
        ValueError('x')
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception as reason:
        return RuntimeError(f"{type(error).__name__}: {error} (cannot be pickled: {reason})")
    return error
