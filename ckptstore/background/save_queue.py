"""Two slots for snapshots: for one in the works, and for one that waits; no third is ever in memory."""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from weakref import WeakSet

from ckptstore.background.handoff import EventfdHandoff, LocalHandoff
from ckptstore.background.message import MessageWriter
from ckptstore.background.process import WorkerProcess, can_start
from ckptstore.background.thread import WorkerThread
from ckptstore.background.worker import Outcome
from ckptstore.background.worker_handle import Slot, WorkerHandle
from ckptstore.commit.request import SaveRequest
from ckptstore.formats.snapshot import Snapshot
from ckptstore.storage.run_lock import RunLock
from ckptstore.system.shared_memory import SharedMemory

Backpressure = Literal["replace", "wait"]
SLOTS = 2
# Set to "thread" by a user who wants no process beside the training.
WRITER = "CKPTSTORE_WRITER"
# Starts of a process within one fit, before a thread takes over.
_STARTS = 3
# Seconds of waiting at the end before a line is printed, and between two.
_PATIENCE_S = 1.0
# Seconds from one look at what the worker has done to the next.
_LISTEN_S = 0.02
_LINE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A message that was handed over and not heard of since."""

    number: int
    slot: int
    droppable: bool
    best: bool

    def may_be_replaced_by(self, *, best: bool) -> bool:
        """Return whether a newer one may take its slot; of one that is the best so far only a better one may."""
        return self.droppable and (best or not self.best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What handing over a snapshot came to.

    Attributes:
        number: The number under which its outcome comes.
        dropped: The number of the snapshot that it has replaced, or None.
        blocked_s: Seconds that the caller waited.
    """

    number: int
    dropped: int | None
    blocked_s: float


class SaveQueue:
    """Hands snapshots to a worker in another process, or in a thread where none can be started.

    Of snapshots that may be dropped at most ten a second are committed; the newest waits meanwhile.

    Memory: one snapshot, and a second only once one had to wait while another was in the works; what is there is used
    again, and stays until `close`.

    What a crash leaves: each snapshot that was handed over is committed by the worker, also when the trainer is
    killed; where the worker is killed too, it is lost like one that was never taken, and all before it are whole.

    Args:
        root: The store's directory.
        lock: The run's lock; the worker holds it as long as it lives.
        backpressure: What to do when one is in the works and another waiting: ``"replace"`` the waiting one, where it
            may be dropped, or ``"wait"``.
    """

    def __init__(self, root: Path, lock: RunLock | None, *, backpressure: Backpressure) -> None:
        self._root = root
        self._lock = lock
        self._backpressure = backpressure
        self._pid = os.getpid()
        self._messages = MessageWriter()
        self._sent: deque[InFlight] = deque()
        self._heard: list[Outcome] = []
        self._number = 0
        self._starts = 0
        self._slots: tuple[Slot, ...] = ()
        self._worker: WorkerHandle | None = None
        self._listened_at = 0.0
        _open.add(self)

    @property
    def survives_trainer(self) -> bool:
        """True where the worker commits what it holds even when this process is killed."""
        return self._worker is not None and self._worker.survives_trainer

    @property
    def pending(self) -> int:
        """How many snapshots are handed over and not heard of."""
        return len(self._sent)

    # --- the worker --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker, which gets ready by itself."""
        if self._worker is None:
            self._start()

    def _start(self) -> None:
        again = bool(self._slots)
        if can_start() and os.environ.get(WRITER) != "thread" and self._starts < _STARTS:
            self._starts += 1
            try:
                if not self._slots:
                    self._slots = tuple(Slot(SharedMemory(), EventfdHandoff()) for _ in range(SLOTS))
                self._worker = WorkerProcess(self._root, self._slots, lock=self._lock, again=again)
                return
            except OSError as error:
                self._say_thread(str(error))
        elif os.environ.get(WRITER) != "thread":
            self._say_thread(
                "it has ended several times" if can_start() else "this platform has no memfd or pidfd"
            )
        memories = [slot.memory for slot in self._slots] or [SharedMemory() for _ in range(SLOTS)]
        self._slots = tuple(Slot(memory, LocalHandoff()) for memory in memories)
        self._worker = WorkerThread(self._root, self._slots, again=again)

    def _say_thread(self, reason: str) -> None:
        warnings.warn(
            f"checkpoints are saved by a thread of this process, since no process could be started for it ({reason}): "
            "one that is being saved when this process is killed is lost",
            RuntimeWarning,
            stacklevel=5,
        )

    def _revive(self, dead: WorkerHandle) -> None:
        """Let another worker take over what the dead one held."""
        print(f"ckptstore: {dead.exit_reason()}; another one takes over", file=sys.stderr, flush=True)
        dead.finish()
        self._start()
        assert self._worker is not None
        for sent in self._sent:
            self._slots[sent.slot].handoff.take()
            self._worker.give(sent.slot)

    # --- handing over ------------------------------------------------------------------------------

    def prepare(self, snapshot: Snapshot) -> None:
        """Let a thread make room for snapshots of this kind."""
        self.start()
        self._messages.prepare(self._slots[0].memory, snapshot)

    def submit(
        self, snapshot: Snapshot, request: SaveRequest, *, droppable: bool, best: bool = False
    ) -> Submitted | None:
        """Copy a snapshot; when this returns, the model may change, and the worker has it.

        Args:
            snapshot: The model.
            request: What is to be done with it.
            droppable: True where a newer one may take its slot while it waits.
            best: True where it is the best so far; then only a better one may.

        Returns:
            None where it may be dropped, and was: no slot is free, and the one that waits is the best so far.
        """
        self.start()
        self._listen(0.0)
        if droppable and not best and self._is_held_by_the_best():
            return None
        dropped = self._make_room(best=best)
        assert self._worker is not None
        self._number += 1
        slot = 1 - self._sent[0].slot if self._sent else 0
        may_wait = droppable and self._backpressure == "replace"
        self._messages.write(self._slots[slot].memory, snapshot, request, self._number, may_wait=may_wait)
        self._sent.append(InFlight(number=self._number, slot=slot, droppable=droppable, best=best))
        self._worker.give(slot)
        if not may_wait:
            self._flush()
        return Submitted(number=self._number, dropped=dropped, blocked_s=request.waited_s())

    def _make_room(self, *, best: bool) -> int | None:
        """Have a slot free; returns the number of the message that had to go for it."""
        while len(self._sent) == SLOTS:
            newest = self._sent[-1]
            if (
                self._backpressure == "replace"
                and newest.may_be_replaced_by(best=best)
                and self._slots[newest.slot].handoff.take()
            ):
                self._sent.pop()
                return newest.number
            self._flush()
            self._listen(None)
        return None

    def _is_held_by_the_best(self) -> bool:
        return self._backpressure == "replace" and len(self._sent) == SLOTS and self._sent[-1].best

    def outcomes(self) -> list[Outcome]:
        """Return what became of snapshots since this was last asked, oldest first; waits for nothing.

        Between batches of a millisecond the worker is not asked each time.
        """
        if self._sent and time.monotonic() - self._listened_at >= _LISTEN_S:
            self._listen(0.0)
        heard, self._heard = self._heard, []
        return heard

    def _listen(self, timeout_s: float | None) -> None:
        if self._worker is None or not self._sent or self._pid != os.getpid():
            return
        found = self._worker.outcomes(timeout_s)
        self._listened_at = time.monotonic()
        if not found and not self._worker.is_alive():
            found = self._worker.outcomes(0.0)
            if not found:
                self._revive(self._worker)
        for outcome in found:
            sent = self._sent_as(outcome.number)
            # One that is no longer among those sent tells of a removal behind it.
            if sent is not None:
                self._sent.remove(sent)
                outcome = replace(outcome, number=sent.number)  # noqa: PLW2901
            self._heard.append(outcome)

    def _sent_as(self, number: int) -> InFlight | None:
        """Return what was sent under a number; a message that could not be read, 0, is the oldest."""
        return next((sent for sent in self._sent if number in (0, sent.number)), None)

    # --- the end -----------------------------------------------------------------------------------

    def drain(self, say: Callable[[str], None] | None = None) -> None:
        """Wait until everything is committed, or has failed; after a second a line says so, now and then.

        An interrupt ends the waiting alone: the worker goes on.
        """
        self._flush()
        began = time.monotonic()
        next_line = began + _PATIENCE_S
        while self._sent and self._pid == os.getpid():
            self._listen(min(_PATIENCE_S, max(0.01, next_line - time.monotonic())))
            now = time.monotonic()
            if self._sent and now >= next_line:
                next_line = now + _LINE_S
                (say or _say)(f"waiting for {self._what()} to be saved ({now - began:.0f} s)")

    def _flush(self) -> None:
        if self._worker is not None and self._sent and self._pid == os.getpid():
            self._worker.flush_up_to(self._sent[-1].number)

    def _what(self) -> str:
        nbytes = sum(self._slots[sent.slot].memory.nbytes for sent in self._sent)
        count = len(self._sent)
        return f"{count} checkpoint{'s' if count > 1 else ''} of up to {nbytes // count / 1e6:,.0f} MB"

    def close(self) -> None:
        """End the worker; it has nothing left to save if `drain` has returned. May be repeated.

        What went wrong in a removal behind the last save is among the `outcomes` then.
        """
        link, self._worker = self._worker, None
        _open.discard(self)
        if link is None or self._pid != os.getpid():
            return
        if not self._sent:
            self._heard += link.finish()
            self._let_go()
            return
        link.detach()
        if link.survives_trainer:
            self._let_go()  # the process has descriptors of its own

    def _let_go(self) -> None:
        slots, self._slots = self._slots, ()
        for slot in slots:
            slot.handoff.close()
            slot.memory.close()

    def __del__(self) -> None:
        if self._worker is not None and self._pid == os.getpid():
            self._worker.detach()


_open: WeakSet[SaveQueue] = WeakSet()


def _say(text: str) -> None:
    print(f"ckptstore: {text}", file=sys.stderr, flush=True)


@atexit.register
def _drain_all() -> None:
    """Save what is on its way when the interpreter ends and no end of a fit has waited for it."""
    for queue in list(_open):
        queue.drain()
        queue.close()
        for outcome in queue.outcomes():
            if outcome.error is not None:
                _say(f"SAVING FAILED: {outcome.error}")
