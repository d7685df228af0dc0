"""One child process at a time: it is told the signals that we get, each once, and does not outlive us.

It has a process group of its own. Ctrl-C in a terminal then reaches us alone, and the child through us, rather than
twice; and its own children (workers of a data loader, a writer in the background) get no signal at all, so that it can
still save. A terminal would stop it for reading, so it reads from nowhere instead.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from ckptstore.system.signal_handlers import is_echo
from ckptstore.system.stop_signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1


class Supervised:
    """Runs children, one after the other, and waits for them and for signals to this process.

    The first signal that asks for a stop is passed on to the child. So is a second, after which the child is killed if
    it has not ended in time. A signal that this process was started with ignoring stays ignored.

    Args:
        grace_s: Seconds that a child has after the second signal.
        stdout: A file descriptor for what children print; None for our own.

    Example:
        >>> with Supervised(grace_s=30.0) as supervised:
        ...     supervised.run([sys.executable, "-c", "raise SystemExit(3)"]), supervised.asked_to_stop
        (3, False)
    """

    def __init__(self, *, grace_s: float, stdout: int | None = None) -> None:
        self._grace_s = grace_s
        self._stdout = stdout
        self._before: dict[signal.Signals, Any] = {}
        self._stops: list[tuple[int, float]] = []
        self._kill_at: float | None = None

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        heeded = [one for one in STOP_SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
        for number in (*heeded, signal.SIGCHLD):
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal has asked for a stop."""
        return bool(self._stops)

    def run(self, command: Sequence[str]) -> int:
        """Start a child, wait for its end, and return its exit code; negative for the signal that killed it.

        Where the system can (Linux), a child whose supervisor was killed gets SIGTERM, so that it saves and ends.

        Raises:
            OSError: The command cannot be started.
        """
        reads_terminal = sys.stdin is not None and sys.stdin.isatty()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if reads_terminal else None,
            stdout=self._stdout,
            process_group=0,
            preexec_fn=_ending_with_us(),  # noqa: PLW1509 - it takes no lock that a thread may hold
        )
        told = 0
        while child.poll() is None:
            for number, _ in self._stops[told:]:
                child.send_signal(number)
            told = len(self._stops)
            if told > 1 and self._kill_at is None:
                self._kill_at = time.monotonic() + self._grace_s
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                child.kill()
                return child.wait()
            self._wait(self._kill_at)
        return child.returncode

    def pause(self, seconds: float) -> bool:
        """Wait; returns False when a signal asks for a stop, at once."""
        until = time.monotonic() + seconds
        while not self.asked_to_stop and time.monotonic() < until:
            self._wait(until)
        return not self.asked_to_stop

    def _wait(self, until: float | None) -> None:
        """Wait for a signal, the end of a child being one, and note those that ask for a stop."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        select.select([self._reader], [], [], timeout)
        with suppress(BlockingIOError):
            for number in os.read(self._reader, 4096):
                if number in STOP_SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if not self._stops or not is_echo(number, self._stops[-1][0], now - self._stops[-1][1]):
            self._stops.append((number, now))


def _noted(number: int, frame: FrameType | None) -> None:
    """Let the signal do nothing but wake the loop above, through Python's wakeup descriptor."""


def _ending_with_us() -> Callable[[], None] | None:
    """Return what a child does before it begins, so that the kernel tells it when this process dies."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def before_exec() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # dead already
            os.kill(os.getpid(), signal.SIGTERM)

    return before_exec
