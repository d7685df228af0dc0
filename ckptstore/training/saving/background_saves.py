"""Saves of a fit that are made in the background: handed over, and settled when their outcomes are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ckptstore.background.save_queue import SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.commit.request import SaveRequest
from ckptstore.errors import StorageError, UnfinishedSaveError
from ckptstore.formats.snapshot import Snapshot
from ckptstore.records import Checkpoint
from ckptstore.retention import Policy
from ckptstore.system import messages
from ckptstore.system.messages import HeldWarning
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.schedule import SaveSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSave:
    """A save whose outcome is not known yet.

    Attributes:
        batches: The batches since the save before, for the schedule.
        best: The monitored value if it is the best so far, else None.
        policy: The user's own retention policy, which another process does not know; None for ours.
        name: The published path as the user spelled it.
        last_epoch: The last finished epoch whose metrics this save brings to the manifest.
    """

    batches: int
    best: float | None
    policy: Policy | None
    name: str
    last_epoch: int


class Settle(Protocol):
    """Takes a save whose outcome is known."""

    def __call__(self, pending: PendingSave, saved: Checkpoint | None, start_s: float) -> None:
        """Take a save.

        Args:
            pending: The save.
            saved: Its checkpoint, or None if it failed.
            start_s: Seconds that the start of the process that saves has taken, since the save before that succeeded.
        """


class BackgroundSaves:
    """The saves of one fit that another process makes.

    Args:
        queue: Hands snapshots over to the process.
        failures: Handles failed saves.
        schedule: Takes note of saves that are left out.
        settle: Takes each save whose outcome is known.
        retain: Removes what a policy does not keep.
    """

    def __init__(
        self,
        queue: SaveQueue,
        failures: SaveFailures,
        schedule: SaveSchedule,
        *,
        settle: Settle,
        retain: Callable[[Policy], object],
    ) -> None:
        self._queue = queue
        self._failures = failures
        self._schedule = schedule
        self._settle = settle
        self._retain = retain
        self._pending: dict[int, PendingSave] = {}
        self._start_s = 0.0

    def start(self) -> None:
        """Start the process; waits for nothing."""
        self._queue.start()

    @property
    def is_saving(self) -> bool:
        """True while a save is not settled."""
        return bool(self._pending)

    def prepare(self, snapshot: Snapshot) -> None:
        """Prepare for snapshots of this size."""
        self._queue.prepare(snapshot)

    def submit(
        self, snapshot: Snapshot, request: SaveRequest, pending: PendingSave, *, droppable: bool
    ) -> bool:
        """Hand a snapshot over; returns False if it was left out, or there is no memory for it.

        Args:
            snapshot: The snapshot; it is copied.
            request: What is committed with it.
            pending: What is to be known when it is settled.
            droppable: Whether a newer save may take its place.

        Raises:
            StorageError: There is no memory for it, and `SaveFailures` asks for an error.
        """
        try:
            handed = self._queue.submit(snapshot, request, droppable=droppable, best=pending.best is not None)
        except StorageError as error:
            self._failures.count(None, error)
            self._schedule.not_saved()
            return False
        if handed is None:
            self._schedule.left_out(pending.batches)
            return False
        if handed.dropped is not None:
            self._pending.pop(handed.dropped, None)
        self._pending[handed.number] = pending
        return True

    def wait(self) -> None:
        """Wait until all saves are finished; a line is printed if that takes long."""
        self._queue.drain()

    def close(self) -> None:
        """End the process that saves; may be repeated."""
        self._queue.close()

    # --- outcomes ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Settle the saves that have finished, if one is not settled; waits for nothing.

        Raises:
            CheckpointStoreError: A save failed, and `SaveFailures` asks for an error.
        """
        if self._pending:
            self.settle_rest()

    def settle_rest(self) -> None:
        """Settle what has finished, also what came after the last save; as `settle`."""
        outcomes = self._queue.outcomes()
        for position, outcome in enumerate(outcomes):
            try:
                self._settle_outcome(outcome)
            except BaseException:
                # An error ends the training; what was saved after it is recorded anyway.
                for later in outcomes[position + 1 :]:
                    if later.number in self._pending:
                        self._settle_pending(self._pending.pop(later.number), later.checkpoint)
                raise
        # At the end, since a filter may turn a warning into an exception.
        messages.issue([HeldWarning(text, UserWarning) for outcome in outcomes for text in outcome.warnings])

    def _settle_outcome(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is not None:
            error.__cause__ = outcome.cause
        self._start_s += outcome.start_s
        pending = self._pending.pop(outcome.number, None)
        if pending is None:
            # Of a removal after the save; or an interrupt came before the save was noted as pending.
            if isinstance(error, UnfinishedSaveError):
                self._failures.count_removal(error)
            return
        saved = None
        try:
            if error is None and outcome.checkpoint is not None and pending.policy is not None:
                error = self._apply(pending.policy, outcome.checkpoint)
            saved = self._failures.count(outcome.checkpoint, error)
        finally:
            self._settle_pending(pending, saved)

    def _settle_pending(self, pending: PendingSave, saved: Checkpoint | None) -> None:
        start_s = self._start_s
        if saved is not None:
            self._start_s = 0.0
        self._settle(pending, saved, start_s)

    def _apply(self, policy: Policy, saved: Checkpoint) -> UnfinishedSaveError | None:
        """Apply a policy of the user's own after a save, which another process does not know."""
        try:
            self._retain(policy)
        except Exception as error:
            # Any error of the user's own code.
            unfinished = UnfinishedSaveError(
                checkpoint=saved, undone="removing what the policy does not keep", error=error
            )
            unfinished.__cause__ = error
            return unfinished
        return None
