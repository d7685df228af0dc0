"""The process that sends alerts: it reads them as lines of JSON, and ends when nobody can write any more.

Meanwhile it looks at the store now and then. It is no part of the supervisor, so that neither a server that hangs nor a
command that leaks can touch the run.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.alerts.alert import Alert
from ckptstore.alerts.delivery import deliver, end_commands
from ckptstore.alerts.repeats import Repeats
from ckptstore.system import messages

if TYPE_CHECKING:
    from ckptstore.alerts.store_monitor import StoreMonitor

# Alerts that wait while an earlier one is being sent; of more, the newest are left out.
_MAX_WAITING = 100
# How long the end of the supervisor may wait for alerts that are on their way.
LAST_S = 20.0
# Seconds between two looks at the store, and until the first.
LOOK_S, METRICS_S, FIRST_LOOK_S = 60.0, 15.0, 2.0


class Sender:
    """Sends alerts one after the other, in a thread.

    Args:
        config: What `ckptstore.alerts.alerts.Alerts` was given, as JSON.
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


def _monitor_of(config: Mapping[str, Any], sender: Sender) -> StoreMonitor | None:
    """Return what looks at the store, if that is wanted; its alerts are counted as those of the supervisor are."""
    if config["store"] is None:
        return None
    from ckptstore.alerts.store_monitor import StoreMonitor

    repeats = Repeats()

    def tell(alert: Alert) -> None:
        admitted = repeats.admit(alert, time.monotonic()) if alert.kind in config["kinds"] else None
        if admitted is not None:
            sender.add(admitted.to_json())

    metrics = config["metrics_file"]
    return StoreMonitor(
        Path(config["store"]),
        config["run"],
        metrics_file=None if metrics is None else Path(metrics),
        tell=tell,
        log=messages.log,
    )


def run(descriptor: int) -> None:
    """Send the alerts that arrive as lines, until the writer is gone; the first line is the configuration."""
    text = bytearray()
    while b"\n" not in text:
        text += (piece := os.read(descriptor, 1 << 16))
        if not piece:
            return
    line, _, rest = bytes(text).partition(b"\n")
    config = json.loads(line)
    sender = Sender(config)
    monitor = _monitor_of(config, sender)
    every_s = LOOK_S if config["metrics_file"] is None else METRICS_S
    text, next_s = bytearray(rest), time.monotonic() + FIRST_LOOK_S
    is_open = True
    while is_open:
        *lines, last = bytes(text).split(b"\n")
        text = bytearray(last)
        for line in lines:
            sender.add(json.loads(line))
        wait_s = None if monitor is None else max(0.0, next_s - time.monotonic())
        if select.select([descriptor], [], [], wait_s)[0]:
            text += (piece := os.read(descriptor, 1 << 16))
            is_open = bool(piece)
        elif monitor is not None:
            monitor.look()
            next_s = time.monotonic() + every_s
    if monitor is not None:
        # How the run has ended is the last that a metrics file says.
        monitor.look()
    sender.finish(LAST_S)


def main() -> None:
    """Run the program; it ends although a delivery may still hang."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        # They are meant for the training; its supervisor closes the pipe when it ends.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        run(sys.stdin.fileno())
    finally:
        end_commands()
        os._exit(0)
