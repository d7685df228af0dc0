"""A worker in a thread of the training process, for platforms and limits that allow no process."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckptstore.background.joining_worker import JoiningWorker
from ckptstore.background.worker import Outcome, Worker
from ckptstore.background.worker_handle import Slot
from ckptstore.distributed.session import JobSession
from ckptstore.storage.run_lock import RunLock
from ckptstore.system import messages

# Threads with work left that nobody waits for. At exit the interpreter would stop them in the middle of it.
_detached: set[threading.Thread] = set()


class WorkerThread:
    """A worker in the training process; what it holds is lost when that process is killed.

    Args:
        root: The store's directory.
        slots: The slots for messages.
        lock: The run's lock, with the claim.
        maybe_committed: True if a worker before this one may have committed the first messages.
        job: The processes of a fit that several processes make together: process 0 commits, and the others join.
    """

    survives_trainer = False

    def __init__(
        self,
        root: Path,
        slots: tuple[Slot, ...],
        *,
        lock: RunLock | None,
        maybe_committed: bool = False,
        job: JobSession | None = None,
    ) -> None:
        self._slots = slots
        memories = tuple(slot.memory for slot in slots)
        self._worker: Worker | JoiningWorker = (
            Worker(root, memories, lock, job)
            if job is None or job.job.is_leader
            else JoiningWorker(root, memories, job)
        )
        self._maybe_committed = maybe_committed
        # `SimpleQueue` is C code: it has no lock that an interrupt could leave held.
        self._given: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._flush: queue.SimpleQueue[None] = queue.SimpleQueue()
        # How often each slot was given.
        self._counts = [0] * len(slots)
        self._thread = threading.Thread(target=self._work, name="ckptstore-saves", daemon=True)
        self._thread.start()

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker."""
        self._counts[slot] += 1
        self._slots[slot].handoff.give()
        self._given.put((slot, self._counts[slot]))

    def flush_up_to(self, number: int) -> None:
        """End the pause before the next commit."""
        if self._flush.empty():
            self._flush.put(None)

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return the outcomes since the last call, oldest first; see `WorkerHandle`."""
        found: list[Outcome] = []
        try:
            found.append(self._outcomes.get(timeout_s != 0.0, timeout_s))
            while True:
                found.append(self._outcomes.get_nowait())
        except queue.Empty:
            return found

    def is_alive(self) -> bool:
        """Return False if the thread has died."""
        return self._thread.is_alive()

    def exit_reason(self) -> str:
        """Return why it has died, as far as that is known."""
        return "the thread that saves has ended"

    def waiting_hint(self) -> str:
        """Return an empty text: a thread is not stopped alone."""
        return ""

    def finish(self) -> list[Outcome]:
        """End the thread after what it was given; see `WorkerHandle`."""
        self._end()
        self._thread.join()
        return self.outcomes(0.0)

    def detach(self) -> None:
        """Let the thread finish its work alone; the interpreter waits for it at exit."""
        _detached.add(self._thread)
        self._end()

    def _end(self) -> None:
        self._given.put(None)
        self.flush_up_to(0)

    def _work(self) -> None:
        while (given := self._given.get()) is not None:
            slot, count = given
            # A message that was withdrawn and replaced was given twice. Only the last time counts: before it, the slot
            # may already hold a message that is newer than the one in the other slot.
            if count == self._counts[slot] and self._slots[slot].handoff.take():
                with messages.collected() as warned:
                    outcome = self._worker.commit(slot, maybe_committed=self._maybe_committed)
                self._outcomes.put(replace(outcome, warnings=tuple(warning.text for warning in warned)))
                with messages.collected() as warned:
                    failure = self._worker.remove()
                if failure is not None:
                    self._outcomes.put(replace(failure, warnings=tuple(warning.text for warning in warned)))
                self._pause()
        self._worker.close()
        _detached.discard(threading.current_thread())

    def _pause(self) -> None:
        left_s = self._worker.idle_until - time.monotonic()
        if left_s > 0:
            with suppress(queue.Empty):
                self._flush.get(timeout=left_s)


@atexit.register
def _wait_for_detached() -> None:
    for thread in list(_detached):
        thread.join()
