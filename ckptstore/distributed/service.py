"""`ServiceMessages`: messages over a framework's key-value service, each call within a limit.

The clients of the frameworks have calls that take no limit and wait for ever when the process that serves them is
stopped. So one thread makes all calls, and callers wait for it as long as they may.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from ckptstore.distributed.driver import pauses
from ckptstore.distributed.messages import KeyValueClient
from ckptstore.errors import MessageConflictError, MessagesLostError, MessageTimeoutError

REPLY_LIMIT_S = 10.0


class _Call:
    """A call of the client, made by the thread and waited for by its caller."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None
        self.error: Exception | None = None
        self.is_given_up = False
        self.done = threading.Event()


class ServiceMessages:
    """`Messages` over a key-value service.

    Args:
        client: The service.
        process: The number of this process.
        service: Its name, for messages.
        reply_limit_s: How long it may take to answer, in seconds.
    """

    def __init__(
        self, client: KeyValueClient, *, process: int, service: str, reply_limit_s: float = REPLY_LIMIT_S
    ) -> None:
        self.process = process
        self.reply_limit_s = reply_limit_s
        self._client = client
        self._service = service
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, key: str, value: str) -> None:
        """Write a message; see `Messages.put`."""
        present = self._call(key, lambda: self._client.put_once(key, value), self.reply_limit_s)
        if present != value:
            raise MessageConflictError(process=self.process, key=key, present=str(present))

    def get(self, key: str, limit_s: float) -> str:
        """Return a message, and wait for it; see `Messages.get`."""
        deadline, waits = time.monotonic() + limit_s, pauses()
        while True:
            left_s = deadline - time.monotonic()
            # The last look is given time to be answered.
            reply_s = min(self.reply_limit_s, max(left_s, 0.2))
            found = self._call(key, lambda: self._client.fetch([key]), reply_s)
            if key in found:
                return str(found[key])
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise MessageTimeoutError(process=self.process, key=key, limit_s=limit_s)
            time.sleep(min(next(waits), left_s))

    def present(self, keys: Sequence[str]) -> dict[str, str]:
        """Return those messages that there are now; see `Messages.present`."""
        if not keys:
            return {}
        found: dict[str, str] = self._call(keys[0], lambda: self._client.fetch(keys), self.reply_limit_s)
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """Delete messages; see `Messages.delete`."""
        if keys:
            self._call(keys[0], lambda: self._client.delete(keys), self.reply_limit_s)

    def close(self) -> None:
        """End the thread, once it has nothing to do; later calls begin another one."""
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._calls.put(None)

    def _call(self, key: str, function: Callable[[], Any], limit_s: float) -> Any:
        call = _Call(function)
        with self._starting:
            if self._thread is None:
                self._calls = SimpleQueue()
                self._thread = threading.Thread(
                    target=_make_calls, args=(self._calls,), name="ckptstore-messages", daemon=True
                )
                self._thread.start()
            self._calls.put(call)
        if not call.done.wait(limit_s):
            call.is_given_up = True
            raise self._lost(key, f"no answer within {limit_s:.3g} s")
        if call.error is not None:
            text = str(call.error).strip() or type(call.error).__name__
            raise self._lost(key, text.splitlines()[0][:200]) from call.error
        return call.result

    def _lost(self, key: str, reason: str) -> MessagesLostError:
        return MessagesLostError(process=self.process, key=key, service=self._service, reason=reason)


def _make_calls(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        if call.is_given_up:
            continue  # its caller may have done something else instead
        try:
            call.result = call.function()
        except Exception as error:
            call.error = error
        call.done.set()
