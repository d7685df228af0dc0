"""`Agreements`: what process 0 decides for all, and that a process has given up; between saves, in one fit.

A process that waits for another looks each time whether one has given up: so an error on one process ends the wait of
all within a moment, not at its limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from ckptstore.distributed.driver import Machine, drive, pauses
from ckptstore.distributed.messages import Messages
from ckptstore.errors import DistributedError, MessageTimeoutError, PeerFailedError

# How long the others wait for a decision: process 0 may have callbacks that take minutes, and the others have none.
DECISION_LIMIT_S = 1800.0
# Decisions before this many are deleted: every process has read them.
_KEPT = 64


class Agreements:
    """The decisions of one fit, in one process.

    Args:
        messages: The messages of this process.
        prefix: Begins the keys, without a ``/`` at its end; the same on all processes, and of no other fit.
        limit_s: How long to wait for a decision, in seconds.

    Example:
        >>> from ckptstore.distributed.memory import MemoryService
        >>> from ckptstore.distributed.service import ServiceMessages
        >>> service = MemoryService()
        >>> first, second = (
        ...     Agreements(ServiceMessages(service, process=process, service="memory"), "fit") for process in (0, 1)
        ... )
        >>> first.decide(True), second.decide(False)
        (True, True)
        >>> second.give_up("its disk is gone")
        >>> try:
        ...     first.check()
        ... except PeerFailedError as error:
        ...     print(error.message)
        process 1 has given up: its disk is gone
    """

    def __init__(self, messages: Messages, prefix: str, *, limit_s: float = DECISION_LIMIT_S) -> None:
        self._messages = messages
        self._prefix = prefix
        self._limit_s = limit_s
        self._number = 0

    @property
    def _failure(self) -> str:
        return f"{self._prefix}/failed"

    def decide(self, value: Any) -> Any:
        """Return process 0's value; every process calls this as often, in the same order.

        Args:
            value: JSON; that of the other processes is not looked at.

        Raises:
            PeerFailedError: Another process has given up.
            MessageTimeoutError: Process 0 does not come here within the limit.
            MessagesLostError: The messages do not get through.
        """
        self._number += 1
        key = self._decision(self._number)
        if self._messages.process == 0:
            self._messages.put(key, json.dumps(value))
            if self._number > _KEPT:
                self._messages.delete([self._decision(self._number - _KEPT)])
            return value
        return json.loads(self._wait(key))

    def _decision(self, number: int) -> str:
        return f"{self._prefix}/decided/{number:08d}"

    def _wait(self, key: str) -> str:
        give_up, waits = time.monotonic() + self._limit_s, pauses()
        while True:
            found = self._messages.present([key, self._failure])
            if key in found:
                return found[key]
            self._raise_failure(found.get(self._failure))
            if time.monotonic() >= give_up:
                raise MessageTimeoutError(process=self._messages.process, key=key, limit_s=self._limit_s)
            time.sleep(next(waits))

    def drive(self, machine: Machine) -> None:
        """Run a state machine as `ckptstore.distributed.driver.drive`, unless a process gives up meanwhile.

        Raises:
            PeerFailedError: Another process has given up.
            DistributedError: The messages do not get through.
        """
        drive(machine, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.check()
        time.sleep(seconds)

    def check(self) -> None:
        """Raise what another process has given up for; does nothing if none has.

        Raises:
            PeerFailedError: One has.
        """
        self._raise_failure(self._messages.present([self._failure]).get(self._failure))

    def _raise_failure(self, text: str | None) -> None:
        if text is None:
            return
        failed = json.loads(text)
        if failed["process"] != self._messages.process:
            raise PeerFailedError(
                process=self._messages.process, failed=failed["process"], reason=failed["reason"]
            )

    def leave(self, others: Collection[int], *, limit_s: float) -> None:
        """Tell process 0 that this process needs no more messages; process 0 waits for that, up to the limit.

        Args:
            others: The numbers of the processes other than 0.
            limit_s: How long process 0 waits, in seconds; then it leaves all the same.

        Raises:
            DistributedError: The messages do not get through.
        """
        if self._messages.process:
            self._messages.put(self._left(self._messages.process), "")
            return
        keys = [self._left(process) for process in others]
        give_up, waits = time.monotonic() + limit_s, pauses()
        while len(self._messages.present(keys)) < len(keys) and time.monotonic() < give_up:
            time.sleep(next(waits))

    def _left(self, process: int) -> str:
        return f"{self._prefix}/left/{process}"

    def exits(self) -> None:
        """Tell the others that this process, which has given up, ends now.

        Raises:
            DistributedError: The messages do not get through.
        """
        self._messages.put(self._exit(self._messages.process), "")

    def all_exit(self, processes: int) -> bool:
        """Return True if all processes have told so, this one included.

        Args:
            processes: The number of processes.

        Raises:
            DistributedError: The messages do not get through.
        """
        return len(self._messages.present([*map(self._exit, range(processes))])) == processes

    def _exit(self, process: int) -> str:
        return f"{self._prefix}/exits/{process}"

    def give_up(self, reason: str) -> None:
        """Tell the others that this process cannot go on; raises nothing, since another error is on its way."""
        value = json.dumps({"process": self._messages.process, "reason": reason})
        with suppress(DistributedError):  # also where another process was first
            self._messages.put(self._failure, value)
