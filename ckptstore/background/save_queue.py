"""The queue of snapshots to be saved: one is being saved, one waits, and no third is ever in memory."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from weakref import WeakSet

from ckptstore.background.handoff import EventfdHandoff, LocalHandoff
from ckptstore.background.message import MessageWriter
from ckptstore.background.process import WorkerProcess
from ckptstore.background.program import WRITER_VARIABLE, refusal
from ckptstore.background.thread import WorkerThread
from ckptstore.background.worker import Outcome
from ckptstore.background.worker_handle import Slot, WorkerHandle
from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.session import JobSession
from ckptstore.errors import InvalidArgumentError, StorageError
from ckptstore.formats.snapshot import Snapshot
from ckptstore.storage.layout import Layout
from ckptstore.storage.run_lock import RunLock
from ckptstore.system import messages
from ckptstore.system.shared_memory import SharedMemory

Backpressure = Literal["replace", "wait"]
SLOTS = 2
# Processes started within one fit before a thread takes over.
_MAX_STARTS = 3
# Seconds between two looks at the outcomes, so that the worker is not asked at every batch.
_POLL_INTERVAL_S = 0.02
# Seconds of waiting in `drain` before the first line is printed, and between two lines.
_FIRST_LINE_S = 1.0
_NEXT_LINE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A message that was given to the worker and has no outcome yet."""

    number: int
    slot: int
    droppable: bool
    best: bool

    def may_be_replaced_by(self, *, best: bool) -> bool:
        """Return True if a newer snapshot may replace it; only a better one may replace the best so far."""
        return self.droppable and (best or not self.best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The receipt for a submitted snapshot.

    Attributes:
        number: The number of its outcome.
        dropped: The number of the snapshot that it replaced, or None.
        blocked_s: Seconds that the caller waited.
    """

    number: int
    dropped: int | None
    blocked_s: float


class SaveQueue:
    """Gives snapshots to a worker in another process, or in a thread where no process can be started.

    At most ten droppable snapshots are committed each second; the newest waits meanwhile.

    Memory: one snapshot, and a second once one had to wait while another was being saved. The memory is used again, and
    kept until `close`.

    What a crash leaves: the worker commits each submitted snapshot, also when the trainer is killed. If the worker is
    killed too, that snapshot is lost as if it had never been taken, and all before it are intact.

    Args:
        root: The store's directory.
        lock: The run's lock, with the claim under which each worker writes; it holds the lock as long as it lives.
        backpressure: What to do when one snapshot is being saved and another waits: ``"replace"`` the waiting one, if
            it may be dropped, or ``"wait"``.
        job: The processes of a fit that several processes make together. Each has a queue, whose worker is a thread,
            since the job's messages reach the training process alone. Process 0 commits; the others write their
            members, need no lock, and get the same checkpoints. Each request has the number of its save.

    Raises:
        InvalidArgumentError: In a job, ``"replace"``: the processes would leave out different saves.
    """

    def __init__(
        self,
        root: Path,
        lock: RunLock | None,
        *,
        backpressure: Backpressure,
        job: JobSession | None = None,
    ) -> None:
        self._job = job
        self._root = root
        self._lock = lock
        self._backpressure = backpressure
        self._pid = os.getpid()
        self._writer = MessageWriter()
        self._in_flight: deque[InFlight] = deque()
        self._outcomes: list[Outcome] = []
        self._number = 0
        self._starts = 0
        self._slots: tuple[Slot, ...] = ()
        self._worker: WorkerHandle | None = None
        self._polled_at = 0.0
        self._user = threading.current_thread()
        if job is not None and backpressure != "wait":
            raise InvalidArgumentError(
                argument="backpressure", value=backpressure, reason='a job of several processes needs "wait"'
            )
        _open.add(self)

    @property
    def survives_trainer(self) -> bool:
        """True if the worker commits what it holds even when this process is killed."""
        return self._worker is not None and self._worker.survives_trainer

    @property
    def pending(self) -> int:
        """The number of submitted snapshots without an outcome."""
        return len(self._in_flight)

    # --- the worker --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker; does not wait until it is ready."""
        if self._worker is None:
            self._start()

    def _start(self) -> None:
        """Start a worker, and give it the messages in flight, which a dead one held."""
        reason = None if self._job is not None else self._start_process()
        if self._worker is None:
            self._start_thread()
        if reason is not None:
            # Only now: a filter may turn the warning into an exception.
            messages.warn(
                f"checkpoints are saved by a thread of this process, since no process could be started for it "
                f"({reason}): one that is being saved when this process is killed is lost",
                RuntimeWarning,
            )

    def _start_process(self) -> str | None:
        """Start a worker in a process; returns why there is none, to be reported, or None."""
        if os.environ.get(WRITER_VARIABLE) == "thread":
            return None
        reason = refusal()
        if reason is not None or self._starts >= _MAX_STARTS:
            return reason or "it has ended several times"
        self._starts += 1
        try:
            self._slots = self._slots or _slots_between_processes()
            # All at once, before the worker looks: it begins with the oldest of those that it sees.
            for message in self._in_flight:
                handoff = self._slots[message.slot].handoff
                handoff.take()
                handoff.give()
            self._worker = WorkerProcess(
                self._root, self._slots, lock=self._lock, maybe_committed=bool(self._in_flight)
            )
        except OSError as error:
            return str(error)
        return None

    def _start_thread(self) -> None:
        for slot in self._slots:
            slot.handoff.close()
        memories = [slot.memory for slot in self._slots] or [SharedMemory() for _ in range(SLOTS)]
        self._slots = tuple(Slot(memory, LocalHandoff()) for memory in memories)
        self._worker = WorkerThread(
            self._root, self._slots, lock=self._lock, maybe_committed=bool(self._in_flight), job=self._job
        )
        for message in self._in_flight:
            self._worker.give(message.slot)

    def _restart(self, dead: WorkerHandle) -> None:
        """Start another worker in place of one that has died."""
        messages.log(f"ckptstore: {dead.exit_reason()}; another one takes over")
        dead.finish()
        self._worker = None
        self._start()

    # --- submitting --------------------------------------------------------------------------------

    def prepare(self, snapshot: Snapshot) -> None:
        """Start the worker, and let a thread make room for snapshots of this kind."""
        self.start()
        with suppress(OSError):  # the save itself meets it too
            self._writer.prepare(self._slots[0].memory, snapshot)

    def submit(
        self, snapshot: Snapshot, request: SaveRequest, *, droppable: bool, best: bool = False
    ) -> Submitted | None:
        """Copy a snapshot and give it to the worker; when this returns, the model may change.

        Args:
            snapshot: The model.
            request: How it is to be saved.
            droppable: True if a newer snapshot may replace it while it waits.
            best: True if it is the best so far; then only a better one may replace it.

        Raises:
            StorageError: There is no memory for the snapshot; nothing was given to the worker.

        Returns:
            The receipt. None if it was dropped: no slot is free, and the best so far waits in the other.
        """
        self._user = threading.current_thread()
        self.start()
        self._poll(0.0)
        if droppable and not best and self._best_is_waiting():
            return None
        dropped = self._make_room(best=best)
        assert self._worker is not None
        self._number += 1
        slot = 1 - self._in_flight[0].slot if self._in_flight else 0
        may_wait = droppable and self._backpressure == "replace"
        try:
            self._writer.write(self._slots[slot].memory, snapshot, request, self._number, may_wait=may_wait)
        except OSError as error:
            failure = StorageError(operation="copying the snapshot", path=self._root, error=error)
            if self._job is not None:
                self._withdraw(self._job, request, failure)
            raise failure from error
        self._in_flight.append(InFlight(number=self._number, slot=slot, droppable=droppable, best=best))
        self._worker.give(slot)
        if not may_wait:
            self._flush()
        return Submitted(number=self._number, dropped=dropped, blocked_s=request.waited_s())

    def _withdraw(self, job: JobSession, request: SaveRequest, error: StorageError) -> None:
        """Tell the other processes that this one has nothing to save."""
        if not job.job.is_leader:
            JoinedSave(job, Layout(self._root)).withdraw(request, error)
        elif request.job_save is not None:
            with suppress(StorageError), LedSave(job, request.job_save):
                raise error

    def _make_room(self, *, best: bool) -> int | None:
        """Free a slot, waiting if need be; returns the number of the message that was replaced, or None."""
        while len(self._in_flight) == SLOTS:
            newest = self._in_flight[-1]
            if (
                self._backpressure == "replace"
                and newest.may_be_replaced_by(best=best)
                and self._slots[newest.slot].handoff.take()
            ):
                self._in_flight.pop()
                return newest.number
            self._flush()
            self._poll(None)
        return None

    def _best_is_waiting(self) -> bool:
        return self._backpressure == "replace" and len(self._in_flight) == SLOTS and self._in_flight[-1].best

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes since the last call, oldest first; waits for nothing.

        The worker is asked at most every `_POLL_INTERVAL_S`: a batch may take a millisecond.
        """
        if self._in_flight and time.monotonic() - self._polled_at >= _POLL_INTERVAL_S:
            self._poll(0.0)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _poll(self, timeout_s: float | None) -> None:
        if self._worker is None or not self._in_flight or self._pid != os.getpid():
            return
        found = self._worker.outcomes(timeout_s)
        self._polled_at = time.monotonic()
        if not found and not self._worker.is_alive():
            found = self._worker.outcomes(0.0)
            if not found:
                self._restart(self._worker)
        for outcome in found:
            message = self._find(outcome.number)
            # An outcome of a message that is no longer in flight is a failed removal after its save.
            if message is not None:
                self._in_flight.remove(message)
                outcome = replace(outcome, number=message.number)  # noqa: PLW2901
            self._outcomes.append(outcome)

    def _find(self, number: int) -> InFlight | None:
        """Return the message in flight with this number; 0, of a message that could not be read, is the oldest."""
        return next((message for message in self._in_flight if number in (0, message.number)), None)

    # --- the end -----------------------------------------------------------------------------------

    def drain(self, log: Callable[[str], None] | None = None) -> None:
        """Wait until everything is committed or has failed; reports progress after a second, then every ten.

        An interrupt ends the wait only: the worker continues.

        Args:
            log: Called with each line of progress; None prints it to stderr.
        """
        self._flush()
        began = time.monotonic()
        next_line = began + _FIRST_LINE_S
        while self._in_flight and self._pid == os.getpid():
            self._poll(min(_FIRST_LINE_S, max(0.01, next_line - time.monotonic())))
            now = time.monotonic()
            if self._in_flight and now >= next_line:
                next_line = now + _NEXT_LINE_S
                (log or _log)(
                    f"waiting for {self._waited_for()} to be saved ({now - began:.0f} s){self._hint()}"
                )

    def _flush(self) -> None:
        if self._worker is not None and self._in_flight and self._pid == os.getpid():
            self._worker.flush_up_to(self._in_flight[-1].number)

    def _waited_for(self) -> str:
        nbytes = sum(self._slots[message.slot].memory.nbytes for message in self._in_flight)
        count = len(self._in_flight)
        return f"{count} checkpoint{'s' if count > 1 else ''} of up to {nbytes // count / 1e6:,.0f} MB"

    def _hint(self) -> str:
        return "" if self._worker is None else self._worker.waiting_hint()

    def close(self) -> None:
        """End the worker, which has nothing left to save once `drain` has returned. May be called again.

        A failed removal after the last save is then among the `outcomes`.
        """
        worker, self._worker = self._worker, None
        _open.discard(self)
        if worker is None or self._pid != os.getpid():
            return
        if not self._in_flight:
            self._outcomes += worker.finish()
            self._free_slots()
            return
        worker.detach()
        if worker.survives_trainer:
            self._free_slots()  # the process has descriptors of its own

    def end_at_exit(self) -> None:
        """Wait for what is not saved yet, and close, when the interpreter exits; raises nothing."""
        try:
            if self._user is not threading.current_thread() and self._user.is_alive():
                # A daemon thread is still training, and only one thread may use the queue. A process continues alone.
                if self._worker is not None and not self.survives_trainer:
                    self._worker.detach()
                return
            self.drain()
            self.close()
        except Exception as error:
            _log(f"SAVING FAILED: {error}")
        for outcome in self.outcomes():
            if outcome.error is not None:
                _log(f"SAVING FAILED: {outcome.error}")

    def _free_slots(self) -> None:
        slots, self._slots = self._slots, ()
        for slot in slots:
            slot.handoff.close()
            slot.memory.close()

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Let the worker finish alone; at the interpreter's exit a process does so anyway."""
        if not _is_ending() and self._worker is not None and self._pid == os.getpid():
            self._worker.detach()


_open: WeakSet[SaveQueue] = WeakSet()


def _log(text: str) -> None:
    messages.log(f"ckptstore: {text}")


def _slots_between_processes() -> tuple[Slot, ...]:
    """Return slots that a worker in another process can use.

    Raises:
        OSError: The system refuses the memory or the handoff.
    """
    handoffs: list[EventfdHandoff] = []
    try:
        for _ in range(SLOTS):
            handoffs.append(EventfdHandoff())
        return tuple(Slot(SharedMemory.shareable(), handoff) for handoff in handoffs)
    except OSError:
        for handoff in handoffs:
            handoff.close()
        raise


@atexit.register
def _drain_all() -> None:
    """Wait at the interpreter's exit for saves that no end of a fit has waited for."""
    for queue in list(_open):
        queue.end_at_exit()
