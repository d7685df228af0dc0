"""What the writer's process does: commits messages, also those that a dead trainer has left, and ends.

It imports neither Keras nor a backend.
"""

from __future__ import annotations

import json
import pickle
import select
import time
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptstore.background.handoff import EventfdHandoff
from ckptstore.background.worker import Outcome, Worker
from ckptstore.background.worker_handle import FINISH, FLUSH_UP_TO
from ckptstore.system.shared_memory import SharedMemory


class ProcessLoop:
    """Commits messages until it is told to end, or the trainer is dead.

    Args:
        facts: What `ckptstore.background.process` says.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        memories = tuple(SharedMemory(descriptor) for descriptor in facts["memories"])
        self._handoffs = [EventfdHandoff(descriptor) for descriptor in facts["handoffs"]]
        self._connection: Any = Connection(facts["connection"])
        self._trainer: int = facts["trainer"]
        # As many messages as there are slots may have been committed by a writer before this one.
        self._doubtful = len(memories) if facts["again"] else 0
        self._worker = Worker(Path(facts["root"]), memories)
        self._warned: list[str] = []
        self._ending = self._started = False
        self._hurried_up_to = 0

    def note_warning(self, message: Warning | str, *where: Any, **more: Any) -> None:
        """Keep a warning for the trainer: nobody sees what this process prints while it works."""
        self._warned.append(str(message))

    def run(self) -> None:
        """Work until the end; what was posted before the trainer's death is committed after it."""
        while True:
            slot = self._oldest()
            if slot is None:
                if self._ending:
                    self._worker.close()
                    return
                self._wait(None)
            elif (rest_s := self._rest_s(slot)) > 0:
                self._wait(rest_s)
            else:
                self._commit(slot)

    def _rest_s(self, slot: int) -> float:
        if self._ending or self._worker.number(slot) <= self._hurried_up_to:
            return 0.0
        return self._worker.idle_until - time.monotonic()

    def _oldest(self) -> int | None:
        """Return the slot of the oldest message that was posted.

        Of two the trainer may replace the newer one meanwhile, by one that is newer still.
        """
        posted = [slot for slot, handoff in enumerate(self._handoffs) if handoff.is_pending()]
        return min(posted, key=self._worker.number) if posted else None

    def _commit(self, slot: int) -> None:
        if not self._handoffs[slot].take():
            return  # it was withdrawn, and another will come
        start_s = 0.0 if self._started else time.process_time()
        self._started = True
        outcome = self._worker.commit(slot, again=self._doubtful > 0)
        self._tell(replace(outcome, start_s=start_s))
        self._doubtful = max(0, self._doubtful - 1)
        failure = self._worker.remove()
        if failure is not None:
            self._tell(failure)

    def _tell(self, outcome: Outcome) -> None:
        warned, self._warned = tuple(self._warned), []
        try:
            self._connection.send_bytes(pickle.dumps(replace(outcome, warned=warned)))
        except OSError:
            return  # nobody is there any more to be told

    def _wait(self, seconds: float | None) -> None:
        """Wait for a word of the trainer's, or its death; without a time also for something to do."""
        poll = select.poll()
        waited_for = [self._connection.fileno(), self._trainer]
        if seconds is None:
            waited_for += [handoff.descriptor for handoff in self._handoffs]
        for descriptor in waited_for:
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)}
        if self._connection.fileno() in ready:
            self._hear()
        if self._trainer in ready:
            self._ending = True

    def _hear(self) -> None:
        try:
            while self._connection.poll():
                said = self._connection.recv_bytes()
                if said == FINISH:
                    self._ending = True
                else:
                    self._hurried_up_to = int(said.removeprefix(FLUSH_UP_TO))
        except (EOFError, OSError):
            self._ending = True


def run(facts: str) -> None:
    """Commit messages until the end.

    Args:
        facts: JSON, of `ckptstore.background.process`.
    """
    writer = ProcessLoop(json.loads(facts))
    warnings.simplefilter("always", UserWarning)
    warnings.simplefilter("always", RuntimeWarning)
    warnings.showwarning = writer.note_warning
    writer.run()
