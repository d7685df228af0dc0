"""A worker in a thread of the training process: where no process can be started."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path

from ckptstore.background.worker import Outcome, Worker
from ckptstore.background.worker_handle import Place

# Threads with work left that nobody waits for; the interpreter would end them where they are.
_abandoned: set[threading.Thread] = set()


class WriterThread:
    """A worker beside the training, in its process: what it holds is lost when that is killed.

    Args:
        root: The store's directory.
        places: The places for letters.
        again: True where the first letters may have been committed before.
    """

    outlives = False

    def __init__(self, root: Path, places: tuple[Place, ...], *, again: bool = False) -> None:
        self._places = places
        self._worker = Worker(root, tuple(place.memory for place in places))
        self._again = again
        # Of these, Python code holds no lock that an interrupt could leave taken.
        self._posted: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._hurried: queue.SimpleQueue[None] = queue.SimpleQueue()
        # How often each place was posted.
        self._counts = [0] * len(places)
        self._thread = threading.Thread(target=self._work, name="ckptstore-saves", daemon=True)
        self._thread.start()

    def post(self, place: int) -> None:
        """Give a place, with a letter in it, to the worker."""
        self._counts[place] += 1
        self._places[place].token.post()
        self._posted.put((place, self._counts[place]))

    def hurry(self, number: int) -> None:
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

    def last_words(self) -> str:
        """Return what is known of its death."""
        return "the thread that saves has ended"

    def finish(self) -> list[Outcome]:
        """End it, after what was posted; see `Link`."""
        self._end()
        self._thread.join()
        return self.outcomes(0.0)

    def abandon(self) -> None:
        """Let it finish alone; the interpreter's end waits for it."""
        _abandoned.add(self._thread)
        self._end()

    def _end(self) -> None:
        self._posted.put(None)
        self.hurry(0)

    def _work(self) -> None:
        while (posted := self._posted.get()) is not None:
            place, count = posted
            # A letter that was withdrawn, and written anew, was posted twice, and the second time counts: by then the
            # place may hold what came behind a letter in the other one.
            if count == self._counts[place] and self._places[place].token.take():
                self._done.put(self._worker.commit(place, again=self._again))
                failure = self._worker.remove()
                if failure is not None:
                    self._done.put(failure)
                self._rest()
        self._worker.close()
        _abandoned.discard(threading.current_thread())

    def _rest(self) -> None:
        left = self._worker.rest_until - time.monotonic()
        if left > 0:
            with suppress(queue.Empty):
                self._hurried.get(timeout=left)


@atexit.register
def _wait_for_abandoned() -> None:
    for thread in list(_abandoned):
        thread.join()
