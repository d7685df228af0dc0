"""The process that sends alerts: it reads them as lines of JSON, and ends when nobody can write any more.

It is no part of the supervisor, so that neither a server that hangs nor a command that leaks can touch the run.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from ckptstore.alerts.delivery import deliver
from ckptstore.system import messages

# Alerts that wait while an earlier one is being sent; of more, the newest are left out.
_MAX_WAITING = 100
# How long the end of the supervisor may wait for alerts that are on their way.
LAST_S = 20.0


class Sender:
    """Sends alerts one after the other, in a thread.

    Args:
        config: ``url`` and ``command``, each a text or None.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def add(self, alert: Mapping[str, Any]) -> None:
        """Send an alert soon."""
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            messages.log(
                f"ckptstore: an alert {alert['kind']!r} is left out: {_MAX_WAITING} others wait to be sent"
            )

    def finish(self, timeout_s: float) -> None:
        """Wait for what is to be sent, at most so many seconds."""
        until = time.monotonic() + timeout_s
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, until - time.monotonic()))

    def _send_all(self) -> None:
        while (alert := self._waiting.get()) is not None:
            lines = deliver(alert, url=self._config["url"], command=self._config["command"], pause=time.sleep)
            for line in lines:
                messages.log(f"ckptstore: {line}")


def run(lines: IO[str]) -> None:
    """Send the alerts that arrive as lines; the first line holds the targets."""
    sender = Sender(json.loads(lines.readline()))
    for line in lines:
        sender.add(json.loads(line))
    sender.finish(LAST_S)


def main() -> None:
    """Run the program; it ends although a delivery may still hang."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        # They are meant for the training; its supervisor closes the pipe when it ends.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        run(sys.stdin)
    finally:
        os._exit(0)
