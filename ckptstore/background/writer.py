"""The program of the writer's process: commits letters, also those that a dead trainer has left, and ends.

Started by `ckptstore.background.process` with descriptors alone. It imports neither Keras nor a backend.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptstore.background.memory import Memory
from ckptstore.background.token import EventToken
from ckptstore.background.worker import Outcome, Worker

# Training comes first; but what is not written must be kept in memory.
NICE = 5
# What is meant for the trainer, which says itself when to end.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE")


class Writer:
    """Commits letters until it is told to end, or the trainer is dead.

    Args:
        facts: What `ckptstore.background.process` says.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        memories = tuple(Memory(descriptor) for descriptor in facts["memories"])
        self._tokens = [EventToken(descriptor) for descriptor in facts["tokens"]]
        self._connection: Any = Connection(facts["connection"])
        self._trainer: int = facts["trainer"]
        self._next: int = facts["first"]
        # As many letters as there are places may have been committed by a writer before this one.
        self._doubtful = len(memories) if facts["again"] else 0
        self._worker = Worker(Path(facts["root"]), memories)

    def run(self) -> None:
        """Work until the end; what was posted before the trainer's death is committed after it."""
        ending = False
        while True:
            if self._tokens[self._next].take():
                self._commit()
            elif ending:
                self._worker.close()
                return
            else:
                ending = self._wait()

    def _commit(self) -> None:
        outcome = self._worker.commit(self._next, again=self._doubtful > 0)
        self._doubtful = max(0, self._doubtful - 1)
        self._next = (self._next + 1) % len(self._tokens)
        self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(outcome))
        except OSError:
            return  # nobody is there any more to be told

    def _wait(self) -> bool:
        """Wait for something to do; returns whether it is to end."""
        poll = select.poll()
        for descriptor in (self._tokens[self._next].descriptor, self._connection.fileno(), self._trainer):
            assert descriptor is not None
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        return self._connection.fileno() in ready or self._trainer in ready


def main() -> None:
    """Run the program."""
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.nice(NICE)
    Writer(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()
