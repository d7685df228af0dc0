"""A stop at which all processes agree: the first position in training that none of them has passed.

Every process comes to the same positions in the same order: after each batch, and at each epoch's end. One that is
asked to stop, as by a signal, asks all. A thread of each process sees that, and tells the position that its training
has passed last; from then on the training waits at its next position, until process 0 has told the latest of these. The
first position behind it is where all stop. No training thread is waited for, since one may wait in a collective
operation for a process that is a step behind.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ckptstore.distributed.messages import Messages
from ckptstore.errors import DistributedError, MessageConflictError, MessagesLostError, MessageTimeoutError

# Seconds between two looks for a request, and the longest to wait for the agreement.
INTERVAL_S = 0.25
LIMIT_S = 60.0
_PAUSE_S = 0.005

# Train batches finished, and 1 at an epoch's end, else 0.
Position = tuple[int, int]
_NOWHERE: Position = (-1, 0)
# Behind every position: what a process tells that has finished. Then nobody stops, and the others finish too.
_BEHIND_ALL: Position = (2**62, 0)


class AgreedStop:
    """The agreement of one process; its thread runs from `start` to `close`.

    Args:
        messages: The messages of this process.
        processes: The number of processes.
        prefix: Begins the keys, without a ``/`` at its end.
        interval_s: Seconds between two looks for a request.
        limit_s: The longest to wait for the agreement, in seconds.
        on_look: Called by the thread before each look, such as to look for what else others tell.

    Attributes:
        reason: Why all are to stop; empty while nobody has asked.
    """

    def __init__(
        self,
        messages: Messages,
        processes: int,
        prefix: str,
        *,
        interval_s: float = INTERVAL_S,
        limit_s: float = LIMIT_S,
        on_look: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_look = on_look
        self._messages = messages
        self._processes = processes
        self._prefix = prefix
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._passed: Position = _NOWHERE
        self._closing = False
        self._agreed: Position | None = None
        self._error: DistributedError | None = None
        self._known = threading.Event()
        self._ended = threading.Event()
        self._asked = ""
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ckptstore-stop", daemon=True)
        self.reason = ""

    def start(self) -> None:
        """Begin to look for requests; may be called again."""
        if not self._thread.is_alive() and not self._ended.is_set():
            self._thread.start()

    def close(self) -> None:
        """End the thread, and tell that this process stops nowhere any more; may be called again."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._wanted.set()
        with suppress(DistributedError):
            if not self._closing:
                name = "agreed" if self._messages.process == 0 else self._own
                self._put(name, _BEHIND_ALL)

    def ask(self, reason: str) -> None:
        """Ask all processes to stop; returns at once, and may be called in a signal handler's thread again and again.

        Args:
            reason: Why, such as the name of a signal.
        """
        if not self._asked:
            self._asked = reason
            self._wanted.set()

    def reached(self, position: Position) -> bool:
        """Return True if all processes stop at this position; called at each, by the thread that trains.

        Raises:
            MessageTimeoutError: The processes have not agreed within the limit.
            MessagesLostError: The messages do not get through.
        """
        with self._lock:
            if not self._closing:
                self._passed = position
                return False
        if not self._known.wait(self._limit_s):
            raise MessageTimeoutError(
                process=self._messages.process, key=f"{self._prefix}/agreed", limit_s=self._limit_s
            )
        if self._error is not None:
            raise self._error
        assert self._agreed is not None
        return position > self._agreed

    # --- the thread --------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while not self._ended.is_set():
                if self._look():
                    self._agree()
                    break
                if self._wanted.wait(self._interval_s) and not self._asked:
                    return
            while not self._ended.wait(self._interval_s):
                with suppress(MessagesLostError):
                    self._on_look()
        except DistributedError as error:
            if self._asked or self._closing:
                self._error, self._closing = error, True
                self._known.set()

    def _look(self) -> bool:
        """Return True if all are to stop."""
        try:
            self._on_look()
            self.reason = self._requested()
        except MessagesLostError:
            # A service that stands still for a while is asked again; only a stop that was asked for fails by it.
            if self._asked:
                raise
        return bool(self.reason)

    def _requested(self) -> str:
        key = f"{self._prefix}/asked"
        if self._asked:
            with suppress(MessageConflictError):  # another process was first
                self._messages.put(key, self._asked)
        return self._messages.present([key]).get(key, "")

    def _agree(self) -> None:
        with self._lock:
            self._closing = True
            passed = self._passed
        self._put(self._own, passed)
        deadline = time.monotonic() + self._limit_s
        if self._messages.process == 0:
            keys = [f"{self._prefix}/passed/{process}" for process in range(self._processes)]
            found = self._collect(keys, deadline)
            self._put("agreed", max(_position(text) for text in found.values()))
        key = f"{self._prefix}/agreed"
        self._agreed = _position(self._collect([key], deadline)[key])
        self._known.set()

    @property
    def _own(self) -> str:
        return f"passed/{self._messages.process}"

    def _put(self, name: str, position: Position) -> None:
        with suppress(MessageConflictError):  # it was told before
            self._messages.put(f"{self._prefix}/{name}", json.dumps(position))

    def _collect(self, keys: list[str], deadline: float) -> dict[str, str]:
        while len(found := self._messages.present(keys)) < len(keys):
            if time.monotonic() >= deadline:
                missing = next(key for key in keys if key not in found)
                raise MessageTimeoutError(process=self._messages.process, key=missing, limit_s=self._limit_s)
            if self._ended.wait(_PAUSE_S):
                raise MessageTimeoutError(process=self._messages.process, key=keys[0], limit_s=0.0)
        return found


def _position(text: str) -> Position:
    step, at_end = json.loads(text)
    return int(step), int(at_end)
