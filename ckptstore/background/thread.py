"""A worker in a thread of the training process: where no process can be started."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path

from ckptstore.background.worker import Outcome, Worker
from ckptstore.background.worker_handle import Slot

# Threads with work left that nobody waits for; the interpreter would end them where they are.
_abandoned: set[threading.Thread] = set()


class WorkerThread:
    """A worker beside the training, in its process: what it holds is lost when that is killed.

    Args:
        root: The store's directory.
        slots: The slots for messages.
        again: True where the first messages may have been committed before.
    """

    survives_trainer = False

    def __init__(self, root: Path, slots: tuple[Slot, ...], *, again: bool = False) -> None:
        self._slots = slots
        self._worker = Worker(root, tuple(slot.memory for slot in slots))
        self._again = again
        # Of these, Python code holds no lock that an interrupt could leave taken.
        self._posted: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._hurried: queue.SimpleQueue[None] = queue.SimpleQueue()
        # How often each slot was posted.
        self._counts = [0] * len(slots)
        self._thread = threading.Thread(target=self._work, name="ckptstore-saves", daemon=True)
        self._thread.start()

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker."""
        self._counts[slot] += 1
        self._slots[slot].handoff.give()
        self._posted.put((slot, self._counts[slot]))

    def flush_up_to(self, number: int) -> None:
        """Let it not rest before the next one."""
        if self._hurried.empty():
            self._hurried.put(None)

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return what was done since, oldest first; see `Link`."""
        found: list[Outcome] = []
        try:
            found.append(self._done.get(timeout_s != 0.0, timeout_s))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            return found

    def is_alive(self) -> bool:
        """Return False where it has died."""
        return self._thread.is_alive()

    def exit_reason(self) -> str:
        """Return what is known of its death."""
        return "the thread that saves has ended"

    def finish(self) -> list[Outcome]:
        """End it, after what was posted; see `Link`."""
        self._end()
        self._thread.join()
        return self.outcomes(0.0)

    def detach(self) -> None:
        """Let it finish alone; the interpreter's end waits for it."""
        _abandoned.add(self._thread)
        self._end()

    def _end(self) -> None:
        self._posted.put(None)
        self.flush_up_to(0)

    def _work(self) -> None:
        while (posted := self._posted.get()) is not None:
            slot, count = posted
            # A message that was withdrawn, and written anew, was posted twice, and the second time counts: by then the
            # slot may hold what came behind a message in the other one.
            if count == self._counts[slot] and self._slots[slot].handoff.take():
                self._done.put(self._worker.commit(slot, again=self._again))
                failure = self._worker.remove()
                if failure is not None:
                    self._done.put(failure)
                self._rest()
        self._worker.close()
        _abandoned.discard(threading.current_thread())

    def _rest(self) -> None:
        left = self._worker.idle_until - time.monotonic()
        if left > 0:
            with suppress(queue.Empty):
                self._hurried.get(timeout=left)


@atexit.register
def _wait_for_abandoned() -> None:
    for thread in list(_abandoned):
        thread.join()
