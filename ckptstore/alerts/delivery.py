"""Sends one alert to a webhook or a command, within bounded time; what fails is said, and never raised."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ckptstore.alerts.alert import body_for, shown_url
from ckptstore.version import __version__

TIMEOUT_S = 10.0
# Pauses before the second and the third try.
PAUSES_S = (1.0, 4.0)
# The variable in which a command finds the alert's sentence; it gets the JSON on its standard input.
TEXT_VARIABLE = "CKPTSTORE_ALERT"

_MAX_ANSWER = 4096
# Commands that run, by their process groups.
_running: set[int] = set()


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that has failed.

    Attributes:
        reason: What happened, without secrets.
        is_final: True if another try would come to the same.
    """

    reason: str
    is_final: bool = False


def deliver(
    alert: Mapping[str, Any], *, url: str | None, command: str | None, pause: Callable[[float], object]
) -> list[str]:
    """Send an alert to each target, three times at most; return a line for each that did not get it.

    Args:
        alert: The alert as JSON.
        url: The webhook, or None.
        command: The command, for a shell, or None.
        pause: Waits for so many seconds between tries.
    """
    targets: list[tuple[str, Callable[[], Failure | None]]] = []
    if url is not None:
        targets.append((shown_url(url), lambda: post(url, alert)))
    if command is not None:
        targets.append(("the alert command", lambda: run_command(command, alert)))
    lines = []
    for name, attempt in targets:
        failure = attempt()
        for seconds in PAUSES_S:
            if failure is None or failure.is_final:
                break
            pause(seconds)
            failure = attempt()
        if failure is not None:
            lines.append(f"the alert {alert['kind']!r} was not sent to {name}: {failure.reason}")
    return lines


# --- webhooks ------------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a POST would become a GET without its body, and go to an address that nobody named."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


def post(url: str, alert: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Failure | None:
    """Send an alert to a webhook once; returns None if it has been taken.

    Args:
        url: The address.
        alert: The alert as JSON.
        timeout_s: The most seconds that this takes, whatever the server does.
    """
    answer: list[Failure | None] = []
    # A thread, since neither a name that does not resolve nor a server that sends a byte a second minds a timeout.
    thread = threading.Thread(target=lambda: answer.append(_post(url, alert, timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else Failure(f"no answer within {timeout_s:g} s")


def _post(url: str, alert: Mapping[str, Any], timeout_s: float) -> Failure | None:
    headers = {"Content-Type": "application/json", "User-Agent": f"ckptstore/{__version__}"}
    try:
        request = urllib.request.Request(url, json.dumps(body_for(url, alert)).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as response:
            response.read(_MAX_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            moved = " (it has moved: give its new address)" if 300 <= error.code < 400 else ""
            return Failure(
                f"it answered {error.code}{moved}", is_final=error.code < 500 and error.code != 429
            )
    except urllib.error.URLError as error:
        return Failure(_in_words(error.reason))
    except (OSError, http.client.HTTPException) as error:
        return Failure(_in_words(error))
    except Exception as error:  # whatever it is, it may quote the address
        return Failure(type(error).__name__, is_final=True)
    return None


def _in_words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    text = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- commands ------------------------------------------------------------------------------------


def run_command(command: str, alert: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Failure | None:
    """Run a command with an alert once; returns None if it has ended with 0.

    Args:
        command: The command, for a shell; it gets the JSON on its standard input, and the sentence in
            ``CKPTSTORE_ALERT``.
        alert: The alert as JSON.
        timeout_s: Seconds after which it is killed, with all that it has started.
    """
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, TEXT_VARIABLE: str(alert["text"])},
            start_new_session=True,
        )
    except OSError as error:
        return Failure(_in_words(error), is_final=True)
    _running.add(process.pid)
    try:
        process.communicate(json.dumps(alert).encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # It may have sent the alert, so that another try might send it twice.
        return Failure(f"it did not end within {timeout_s:g} s, and was killed", is_final=True)
    finally:
        _kill_group(process.pid)
        process.wait()
        _running.discard(process.pid)
    if process.returncode == 0:
        return None
    is_missing = process.returncode in (126, 127)
    return Failure(f"it ended with exit code {process.returncode}", is_final=is_missing)


def end_commands() -> None:
    """Kill the commands that still run: this process is about to end, and waits for them no longer."""
    for group in tuple(_running):
        _kill_group(group)


def _kill_group(group: int) -> None:
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)
