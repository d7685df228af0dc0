"""`Alerts`: hands alerts to the process that sends them; never waits for it, and never raises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from ckptstore.alerts.alert import ALERT_KINDS, Alert, shown_url
from ckptstore.alerts.repeats import Repeats
from ckptstore.background import program
from ckptstore.errors import InvalidArgumentError
from ckptstore.system.process_tree import look_at, related

PROGRAM = "ckptstore.alerts"
# An alert is one write into a pipe: with at most PIPE_BUF bytes it is complete, or refused.
_MAX_LINE = 4000
# A process that ends again and again is not started for ever.
_MAX_STARTS = 5


class Alerts:
    """Sends alerts about a run to a webhook, a command, or both.

    Nothing of it touches the run: another process sends, which is started with the first alert or by `watch`, gets
    alerts through a pipe that is never waited for, and has ten seconds for each of three tries. Of one kind and run,
    one is sent within an hour; the others are counted. What fails is said in one line on stderr, without secrets.

    Args:
        url: The webhook, or None.
        command: The command, for a shell, or None.
        kinds: The kinds to send.
        log: Called with each message of this process.

    Raises:
        InvalidArgumentError: The URL is none of http or https, or a kind is unknown.

    Example:
        >>> alerts = Alerts(log=print)
        >>> alerts.send(Alert(kind="finish", store="/runs", run="digits", text="digits has finished"))
        >>> alerts.close(1.0)
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        command: str | None = None,
        kinds: Collection[str] = ALERT_KINDS,
        log: Callable[[str], object],
    ) -> None:
        if url is not None:
            check_url(url)
        unknown = [kind for kind in kinds if kind not in ALERT_KINDS]
        if unknown:
            raise InvalidArgumentError(
                argument="kinds", value=unknown[0], reason=f"the kinds are {', '.join(ALERT_KINDS)}"
            )
        self._has_targets = url is not None or command is not None
        self._kinds = frozenset(kinds)
        self._config: dict[str, object] = {"url": url, "command": command, "kinds": sorted(kinds)}
        self._config |= {"store": None, "run": None, "metrics_file": None}
        self._log = log
        self._repeats = Repeats()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """Id of the process that sends, which is a session of its own; None where there is none."""
        return None if self._process is None else self._process.pid

    def watch(self, store: Path, run: str | None, *, metrics_file: Path | None = None) -> None:
        """Have the other process look at a store: for rollbacks and a disk that fills, and to write metrics.

        Without a target and a file for metrics there is nothing to look for, and no process.

        Args:
            store: The store, absolute; there may be none yet.
            run: The only run to look at; None for all.
            metrics_file: Where to write metrics for Prometheus every 15 seconds, absolute; or None.
        """
        if not self._has_targets and metrics_file is None:
            return
        file = None if metrics_file is None else str(metrics_file)
        self._config |= {"store": str(store), "run": run, "metrics_file": file}
        try:
            self._start()
        except OSError as error:
            self._log(f"no process for alerts can be started: {error.strerror or type(error).__name__}")

    def send(self, alert: Alert) -> None:
        """Send an alert, unless its kind is not wanted or it comes again within the hour."""
        if not self._has_targets or alert.kind not in self._kinds:
            return
        admitted = self._repeats.admit(alert, time.monotonic())
        if admitted is None:
            return
        try:
            self._write(admitted)
        except BlockingIOError:
            self._log(f"the alert {alert.kind!r} is left out: too many others wait to be sent")
        except OSError as error:
            self._close_pipe()
            self._log(f"the alert {alert.kind!r} was not sent: {error.strerror or type(error).__name__}")

    def _write(self, alert: Alert) -> None:
        line = _line(alert.to_json())
        if self._pipe is not None:
            try:
                os.write(self._pipe, line)
                return
            except BrokenPipeError:
                self._close_pipe()
        self._start()
        if self._pipe is not None:
            os.write(self._pipe, line)

    def _start(self) -> None:
        if self._starts >= _MAX_STARTS:
            raise OSError(0, f"the process that sends alerts has ended {self._starts} times")
        self._starts += 1
        if self._process is not None:
            _kill(self._process)
        reader, writer = os.pipe()
        try:
            os.set_blocking(writer, False)
            # Not in the arguments, which everybody on the machine can read.
            os.write(writer, (json.dumps(self._config) + "\n").encode())
            self._process = subprocess.Popen(
                program.command({}, program=PROGRAM),
                stdin=reader,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._pipe = writer

    def close(self, timeout_s: float) -> None:
        """Wait for the alerts that are on their way, at most so many seconds; then they are given up."""
        process, self._process = self._process, None
        self._close_pipe()
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
            return
        self._log(f"alerts are given up: they were not sent within {timeout_s:g} s")
        _kill(process)

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process that sends alerts, and the command that it may be waiting for."""
    started = related(process.pid, process.pid)
    process.kill()
    process.wait()
    for child in started:
        now = look_at(child.pid)
        if now is not None and now.started_ticks == child.started_ticks:
            with suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)


def check_url(url: str) -> None:
    """Check the address of a webhook.

    Raises:
        InvalidArgumentError: It is none of http or https; the message leaves out what may be a secret.

    Example:
        >>> check_url("hooks.example.org/secret")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: url='...': must begin with https:// or http:// and a host
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
        shown_url(url)  # a port that is none
    except ValueError:
        is_usable = False
    if not is_usable or " " in url:
        raise InvalidArgumentError(
            argument="url", value="...", reason="must begin with https:// or http:// and a host"
        )


def _line(alert: dict[str, object]) -> bytes:
    """Return an alert as a line of at most `_MAX_LINE` bytes; details go first, then the text and the path are cut."""
    line = (json.dumps(alert) + "\n").encode()
    if len(line) > _MAX_LINE:
        alert = {**alert, "detail": {}}
        line = (json.dumps(alert) + "\n").encode()
    characters = _MAX_LINE
    while len(line) > _MAX_LINE and characters > 0:  # a character may take 12 bytes in JSON
        characters //= 2
        cut = {"text": str(alert["text"])[:characters], "store": str(alert["store"])[-characters or None :]}
        line = (json.dumps({**alert, **cut}) + "\n").encode()
    return line
