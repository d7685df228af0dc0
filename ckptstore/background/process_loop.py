"""The loop of the worker process: commits messages, also those that a dead trainer left, and ends.

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
from ckptstore.records import Claim
from ckptstore.storage.heartbeat_file import mark_saving
from ckptstore.storage.layout import Layout
from ckptstore.storage.run_lock import RunLock
from ckptstore.system.shared_memory import SharedMemory


class ProcessLoop:
    """Commits messages until the trainer asks it to end, or is dead.

    Args:
        config: The store's root and the inherited descriptors, as `ckptstore.background.process` passes them.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        memories = tuple(SharedMemory(descriptor) for descriptor in config["memories"])
        self._handoffs = [EventfdHandoff(descriptor) for descriptor in config["handoffs"]]
        self._connection: Any = Connection(config["connection"])
        self._trainer: int = config["trainer"]
        # A worker before this one may have committed as many messages as there are slots.
        self._maybe_committed = len(memories) if config["maybe_committed"] else 0
        lock, layout = None, Layout(Path(config["root"]))
        if config["claim"] is not None:
            claim = Claim(**config["claim"])
            lock = RunLock.inherited(layout.locks, config["lock"], claim)
            mark_saving(layout.heartbeats / claim.run)  # until this process ends
        self._worker = Worker(layout.root, memories, lock)
        self._warnings: list[str] = []
        self._ending = self._started = False
        self._flush_up_to = 0

    def record_warning(self, message: Warning | str, *where: Any, **more: Any) -> None:
        """Record a warning for the trainer, since nobody sees what this process prints while it works."""
        self._warnings.append(str(message))

    def run(self) -> None:
        """Work until the end; what was given before the trainer's death is committed after it."""
        while True:
            slot = self._oldest()
            if slot is None:
                if self._ending:
                    self._worker.close()
                    return
                self._wait(None)
            elif (idle_s := self._idle_s(slot)) > 0:
                self._wait(idle_s)
            else:
                self._commit(slot)

    def _idle_s(self, slot: int) -> float:
        if self._ending or self._worker.number(slot) <= self._flush_up_to:
            return 0.0
        return self._worker.idle_until - time.monotonic()

    def _oldest(self) -> int | None:
        """Return the slot of the oldest message that was given.

        Where there are two, the trainer may replace the newer one meanwhile, by one that is newer still.
        """
        given = [slot for slot, handoff in enumerate(self._handoffs) if handoff.is_pending()]
        return min(given, key=self._worker.number) if given else None

    def _commit(self, slot: int) -> None:
        if not self._handoffs[slot].take():
            return  # it was withdrawn, and a newer one will come
        start_s = 0.0 if self._started else time.process_time()
        self._started = True
        outcome = self._worker.commit(slot, maybe_committed=self._maybe_committed > 0)
        self._send(replace(outcome, start_s=start_s))
        self._maybe_committed = max(0, self._maybe_committed - 1)
        failure = self._worker.remove()
        if failure is not None:
            self._send(failure)

    def _send(self, outcome: Outcome) -> None:
        issued, self._warnings = tuple(self._warnings), []
        try:
            self._connection.send_bytes(pickle.dumps(replace(outcome, warnings=issued)))
        except OSError:
            return  # the trainer is gone

    def _wait(self, seconds: float | None) -> None:
        """Wait for a command of the trainer or its death; without a time limit, also for a slot that is given."""
        poll = select.poll()
        waited_for = [self._connection.fileno(), self._trainer]
        if seconds is None:
            waited_for += [handoff.descriptor for handoff in self._handoffs]
        for descriptor in waited_for:
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)}
        if self._connection.fileno() in ready:
            self._receive()
        if self._trainer in ready:
            self._ending = True

    def _receive(self) -> None:
        try:
            while self._connection.poll():
                command = self._connection.recv_bytes()
                if command == FINISH:
                    self._ending = True
                else:
                    self._flush_up_to = int(command.removeprefix(FLUSH_UP_TO))
        except (EOFError, OSError):
            self._ending = True


def run(config: str) -> None:
    """Commit messages until the end.

    Args:
        config: The JSON that `ckptstore.background.process` passes.
    """
    loop = ProcessLoop(json.loads(config))
    warnings.simplefilter("always", UserWarning)
    warnings.simplefilter("always", RuntimeWarning)
    warnings.showwarning = loop.record_warning
    loop.run()
