"""A child process that is passed each signal that this process gets, once, and does not outlive this process.

The child has a process group of its own. Ctrl-C in a terminal then reaches this process alone, and the child through
it, rather than twice; and the child's own children (workers of a data loader, a saving process) get no signal at all,
so that they can still save. A terminal would stop the child for reading, so it reads from the null device instead.
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


class SupervisedChild:
    """Runs children, one after the other, and waits for their end and for signals to this process.

    The first signal that asks for a stop is passed on to the child. So is a second, after which the child is killed if
    it has not ended in time. A signal that this process ignored from its start stays ignored.

    Args:
        grace_s: Seconds from the second signal until the child is killed.
        stdout: A file descriptor for the output of children; None for this process's own.

    Example:
        >>> with SupervisedChild(grace_s=30.0) as child:
        ...     child.run([sys.executable, "-c", "raise SystemExit(3)"]), child.stop_requested
        (3, False)
    """

    def __init__(self, *, grace_s: float, stdout: int | None = None) -> None:
        self._grace_s = grace_s
        self._stdout = stdout
        self._earlier_handlers: dict[signal.Signals, Any] = {}
        self._stops: list[tuple[int, float]] = []
        self._kill_at: float | None = None

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._earlier_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        not_ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in (*not_ignored, signal.SIGCHLD):
            self._earlier_handlers[number] = signal.signal(number, _ignore)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._earlier_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def stop_requested(self) -> bool:
        """True once a signal has asked for a stop."""
        return bool(self._stops)

    def run(self, command: Sequence[str]) -> int:
        """Start a child, wait for its end, and return its exit code; negative for the signal that killed it.

        Where the system can do so (Linux), a child whose supervisor was killed gets SIGTERM, so that it saves and ends.

        Raises:
            OSError: The command cannot be started.
        """
        reads_terminal = sys.stdin is not None and sys.stdin.isatty()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if reads_terminal else None,
            stdout=self._stdout,
            process_group=0,
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it takes no lock that a thread may hold
        )
        passed_on = 0
        while child.poll() is None:
            for number, _ in self._stops[passed_on:]:
                child.send_signal(number)
            passed_on = len(self._stops)
            if passed_on > 1 and self._kill_at is None:
                self._kill_at = time.monotonic() + self._grace_s
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                child.kill()
                return child.wait()
            self._wait(self._kill_at)
        return child.returncode

    def pause(self, seconds: float) -> bool:
        """Wait for some seconds; return False as soon as a signal asks for a stop."""
        until = time.monotonic() + seconds
        while not self.stop_requested and time.monotonic() < until:
            self._wait(until)
        return not self.stop_requested

    def _wait(self, until: float | None) -> None:
        """Wait for a signal (the end of a child is one too), and note those that ask for a stop."""
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


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python's wakeup descriptor has woken the loop above."""


def _die_with_parent() -> Callable[[], None] | None:
    """Return a function for a child to call before it executes its program; None where the system cannot do so.

    The kernel then sends the child SIGTERM when this process dies.
    """
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
        if os.getppid() != parent:  # the parent died before prctl was called
            os.kill(os.getpid(), signal.SIGTERM)

    return before_exec
