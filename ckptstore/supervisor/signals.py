"""Signals to the supervisor, which wake its one wait and are noted with their time."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from ckptstore.system.signal_handlers import is_echo
from ckptstore.system.stop_signals import STOP_SIGNALS

# A terminal that is closed asks for a stop too; the command, which does not watch for that, gets SIGTERM.
_HANG_UP = {signal.SIGHUP: signal.SIGTERM}
_REQUESTS = (*STOP_SIGNALS, *_HANG_UP)


class SignalInbox:
    """Notes the signals that ask this process for a stop, and wakes it for them and for the ends of its children.

    A signal that this process ignored from its start stays ignored. Needs the main thread.

    Attributes:
        stops: The signals to pass on, with the times of the monotonic clock at which they came.

    Example:
        >>> with SignalInbox() as inbox:
        ...     inbox.wait(0.0)
        ...     inbox.stop_requested
        False
    """

    def __init__(self) -> None:
        self.stops: list[tuple[signal.Signals, float]] = []
        self._earlier_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._earlier_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        not_ignored = [number for number in _REQUESTS if signal.getsignal(number) != signal.SIG_IGN]
        for number in (*not_ignored, signal.SIGCHLD):
            self._earlier_handlers[number] = signal.signal(number, _do_nothing)
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
        return bool(self.stops)

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> None:
        """Wait for a signal, or for a descriptor that becomes readable, at most for a time."""
        poll = select.poll()
        for descriptor in (self._reader, *descriptors):
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, 1000 * timeout_s))
        with suppress(BlockingIOError):
            for number in os.read(self._reader, 4096):
                if number in _REQUESTS:
                    self._note(signal.Signals(number))

    def pause(self, seconds: float) -> bool:
        """Wait for some seconds; return False as soon as a signal asks for a stop."""
        until = time.monotonic() + seconds
        while not self.stop_requested and (left_s := until - time.monotonic()) > 0:
            self.wait(left_s)
        return not self.stop_requested

    def _note(self, number: signal.Signals) -> None:
        number, now = _HANG_UP.get(number, number), time.monotonic()
        if not self.stops or not is_echo(number, self.stops[-1][0], now - self.stops[-1][1]):
            self.stops.append((number, now))


@contextmanager
def blocked_for_fork() -> Iterator[None]:
    """Block the signals that ask for a stop while a child is forked that is to get none of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_in_child() -> None:
    """Make a forked child ignore the signals that are meant for this process: it must not note them a second time."""
    signal.set_wakeup_fd(-1)
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python's wakeup descriptor has woken the wait above."""
