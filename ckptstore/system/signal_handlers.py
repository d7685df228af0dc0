"""The handlers that all stop requests of a process share, how they step aside, and what a fork does to them.

The first signal is noted for everybody who looks. For all that comes after, and for everybody else, the handlers from
before are put back and have it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from inspect import currentframe
from pathlib import Path
from signal import Signals
from types import FrameType
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

_ECHO_S = 3.0
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Watcher(Protocol):
    """Whoever looks for signals."""

    @property
    def signals(self) -> tuple[Signals, ...]:
        """Those that it looks for."""

    @property
    def is_polled(self) -> Callable[[FrameType | None], bool] | None:
        """Tells, of the frame that a signal interrupts, whether it still looks; None for yes."""


def is_echo(number: int, first: int, after_s: float) -> bool:
    """Return whether a signal is the one before it come a second time, rather than a second request.

    `timeout` sends its signal to the process and then to its group, and others to every process of a job while whoever
    started this one passes it on. SIGINT is a person's, and each one counts.

    Args:
        number: The second signal.
        first: The one before.
        after_s: Seconds between them.

    Example:
        >>> is_echo(signal.SIGTERM, signal.SIGTERM, 0.001), is_echo(signal.SIGTERM, signal.SIGTERM, 5.0)
        (True, False)
    """
    return number == first != signal.SIGINT and after_s < _ECHO_S


class SharedHandlers:
    """What the stop requests of a process share: our handlers, those before them, and the signal that came."""

    current: ClassVar[SharedHandlers | None] = None

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.received: Signals | None = None
        # A callback that was dropped without `uninstall` no longer looks, and so must not keep a signal.
        self.users: WeakSet[Watcher] = WeakSet()
        self.before: dict[Signals, _Handler] = {}
        self._received_at = 0.0
        self._chained = False

    @classmethod
    def shared(cls) -> SharedHandlers:
        """Return the one that is in use in this process, or a new one."""
        current = cls.current
        if current is not None:
            if current.users and current.pid == os.getpid():
                return current
            current.end()
        cls.current = cls()
        return cls.current

    def join(self, user: Watcher) -> tuple[Signals, ...]:
        """Let one more look; returns the signals that had to be left to handlers from outside Python."""
        self.users.add(user)  # first: from the instant of the handler on somebody must be looking
        skipped = []
        for number in user.signals:
            handler = signal.getsignal(number)
            if number in self.before:
                if handler == self.before[number]:
                    signal.signal(number, self.handle)
            elif _is_foreign(number, handler):
                skipped.append(number)
            else:
                self.before[number] = handler
                signal.signal(number, self.handle)
        return tuple(skipped)

    def end(self) -> None:
        """Let nobody look any more."""
        self.users.clear()
        self.put_back()

    def put_back(self) -> None:
        """Put back the old handlers of signals that nobody looks for any more, where ours still stand.

        Outside the main thread Python does not allow it; then our handler does it when it is called.
        """
        for number, handler in self.before.items():
            if not self._is_watched(number) and signal.getsignal(number) == self.handle:
                try:
                    signal.signal(number, handler)
                except ValueError:
                    return

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; with a second one, in a child, or with nobody looking, step aside for it."""
        for user in list(self.users):
            if user.is_polled is not None and not user.is_polled(frame):
                self.users.discard(user)
        if self.pid != os.getpid():  # a child that C code forked, without the hooks below
            self.users.clear()
        elif self.received is not None:
            if self.users and is_echo(number, self.received, time.monotonic() - self._received_at):
                return
            self.users.clear()
        if self._is_watched(number):
            self._received_at = time.monotonic()
            self.received = Signals(number)
            return
        self.put_back()
        self._pass_on(Signals(number), frame)

    def _is_watched(self, number: int) -> bool:
        return any(number in user.signals for user in self.users)

    def _pass_on(self, number: Signals, frame: FrameType | None) -> None:
        """Do what the signal would have done without us, whoever may have put a handler on top of ours."""
        handler = self.before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            on_top = signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, on_top)

    def chain(self, received: Signals) -> None:
        """Call the old handler of the signal that was received, once, if it is a function."""
        handler = self.before[received]
        if callable(handler) and not self._chained:
            self._chained = True
            handler(received, currentframe())


class _Forking(threading.local):
    """The signals that a thread blocked before it began to fork; None where it is not about to."""

    mask: set[int | Signals] | None = None


_forking = _Forking()


def _before_fork() -> None:
    """Hold back our signals: Python forgets those that reach a child before it is ready for them."""
    current = SharedHandlers.current
    if current is not None and current.users:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, current.before)


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
        _forking.mask = None


def _after_fork_in_child() -> None:
    """Give the child the handlers from before, so that whoever started it can end it."""
    if SharedHandlers.current is not None:
        SharedHandlers.current.end()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)


def _is_foreign(number: Signals, handler: _Handler) -> bool:
    """Whether code outside Python handles a signal: faulthandler, say, or a backend that watches for preemption."""
    return handler is None or (not callable(handler) and number in _caught())


def _caught() -> Iterator[int]:
    """Yield the signals that this process handles, as far as the system tells: on Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for line in status.splitlines():
        if line.startswith("SigCgt:"):
            mask = int(line.partition(":")[2], 16)
            yield from (number for number in range(1, 65) if mask >> (number - 1) & 1)
