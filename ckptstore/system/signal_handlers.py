"""Signal handlers that all stop requests of a process share; a second signal, or a forked child, gets the old ones.

The first signal is recorded for every request. For later signals, and when no request polls, the old handlers are put
back and receive the signal. Where the program has installed a handler of its own over ours, later requests have
handlers over that one: it is their old handler.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from inspect import currentframe
from pathlib import Path
from signal import Signals
from types import FrameType
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

from ckptstore.system.native_handlers import NativeHandler

_ECHO_S = 3.0
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Watcher(Protocol):
    """An object that polls for signals."""

    @property
    def signals(self) -> tuple[Signals, ...]:
        """The signals that it polls for."""

    @property
    def takes_over(self) -> Collection[Signals]:
        """The signals whose handler from outside Python it may replace while it polls."""

    @property
    def is_polled(self) -> Callable[[FrameType | None], bool] | None:
        """A function from the frame that a signal interrupts to whether it still polls; None for always."""


def is_echo(number: int, first: int, after_s: float) -> bool:
    """Return True if a signal is an echo of the one before it rather than a second request.

    `timeout` sends its signal to the process and then to its group. Others send theirs to every process of a job, while
    the parent of this process passes it on. SIGINT comes from a person, and each one counts.

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
    """The handlers that the stop requests of a process share, the handlers before them, and the signal that came.

    Args:
        below: Handlers that other requests share, with others over them that the program has installed since.
    """

    current: ClassVar[SharedHandlers | None] = None

    def __init__(self, below: SharedHandlers | None = None) -> None:
        self.pid = os.getpid()
        self._below = below
        self.received: Signals | None = None if below is None else below.received
        # Weak: a callback that was dropped without `uninstall` no longer polls, and must not swallow a signal.
        self.watchers: WeakSet[Watcher] = WeakSet()
        self.old_handlers: dict[Signals, _Handler] = {}
        self.native: dict[Signals, NativeHandler] = {}
        self._received_at: float = 0.0 if below is None else below._received_at
        self._old_handler_called = False

    @classmethod
    def for_signals(cls, signals: Collection[Signals]) -> SharedHandlers:
        """Return the ones that are in use in this process if a signal reaches them, or new ones."""
        current = cls.current
        if current is not None and current.pid != os.getpid():
            current.end()
        if current is not None:
            current._release_without_poll(currentframe())
        while current is not None and not current.watchers:
            current.restore()
            current = current._below
        if current is None or any(map(current._is_covered, signals)):
            current = cls(below=current)
        cls.current = current
        return current

    @property
    def watched(self) -> set[Signals]:
        """The signals that a handler of ours may record."""
        below = set() if self._below is None else self._below.watched
        return below | set(self.old_handlers) if self.watchers else below

    def _is_covered(self, number: Signals) -> bool:
        """Return True if the program has installed a handler of its own over ours, which gets the signal first."""
        if number not in self.old_handlers:
            return False
        return signal.getsignal(number) not in (self.handle, self.old_handlers[number])

    def _release_without_poll(self, frame: FrameType | None) -> None:
        """Remove the watchers that do not poll any more: an exception has ended their fits unnoticed."""
        for watcher in list(self.watchers):
            if watcher.is_polled is not None and not watcher.is_polled(frame):
                self.watchers.discard(watcher)
        if self._below is not None:
            self._below._release_without_poll(frame)

    def add(self, watcher: Watcher) -> tuple[Signals, ...]:
        """Install handlers for a watcher; returns the signals left to handlers from outside Python."""
        self.watchers.add(watcher)  # first: as soon as a handler is installed, a watcher must poll
        skipped = []
        for number in watcher.signals:
            handler = signal.getsignal(number)
            if number in self.old_handlers:
                if handler == self.old_handlers[number]:
                    signal.signal(number, self.handle)
            elif _is_foreign(number, handler) and not self._takes_over(watcher, number):
                skipped.append(number)
            else:
                self.old_handlers[number] = handler
                signal.signal(number, self.handle)
        return tuple(skipped)

    def _takes_over(self, watcher: Watcher, number: Signals) -> bool:
        """Keep a handler from outside Python aside, to put it back later; returns False if it must stay."""
        if number not in watcher.takes_over:
            return False
        try:
            self.native[number] = NativeHandler(number)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Remove all watchers, and restore the old handlers."""
        self._release_all()
        self.restore()

    def _release_all(self) -> None:
        self.watchers.clear()
        if self._below is not None:
            self._below._release_all()

    def restore(self) -> None:
        """Restore the old handlers of signals that are no longer watched, where ours are still installed.

        Outside the main thread Python does not allow it; our handler then does it when it is called.
        """
        for number, handler in self.old_handlers.items():
            if not self._is_watched(number) and signal.getsignal(number) == self.handle:
                try:
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
                except ValueError:
                    return
                if number in self.native:
                    self.native[number].put_back()
        if self._below is not None:
            self._below.restore()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; step aside for a second one, in a child, and when nobody polls."""
        self._release_without_poll(frame)
        if self.pid != os.getpid():  # a child that C code forked, without the hooks below
            self._release_all()
        elif self.received is not None:
            if self.watchers and is_echo(number, self.received, time.monotonic() - self._received_at):
                return
            self._release_all()
        if self._is_watched(number):
            self._received_at = time.monotonic()
            self.received = Signals(number)
            return
        self.restore()
        self._pass_on(Signals(number), frame)

    def _is_watched(self, number: int) -> bool:
        return any(number in watcher.signals for watcher in self.watchers)

    def _pass_on(self, number: Signals, frame: FrameType | None) -> None:
        """Do what the signal would have done without us, whatever handler was installed on top of ours."""
        handler = self.old_handlers[number]
        if number in self.native and self.received is None:
            signal.raise_signal(number)  # nobody polls, and the handler from outside Python is there again
        elif callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            on_top = signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, on_top)

    def call_old_handler(self, received: Signals) -> None:
        """Call the old handler of the signal that was received, once, if it is a function."""
        handler = self.old_handlers[received]
        if callable(handler) and not self._old_handler_called:
            self._old_handler_called = True
            handler(received, currentframe())


class _Forking(threading.local):
    """The signals that a thread had blocked before it began to fork; None while it is not forking."""

    mask: set[int | Signals] | None = None


_forking = _Forking()


def _before_fork() -> None:
    """Block our signals: Python loses those that reach a child before it is ready for them."""
    current = SharedHandlers.current
    if current is not None and (watched := current.watched):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
        _forking.mask = None


def _after_fork_in_child() -> None:
    """Give the child the old handlers, so that its parent can end it."""
    if SharedHandlers.current is not None:
        SharedHandlers.current.end()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)


def _is_foreign(number: Signals, handler: _Handler) -> bool:
    """Return True if code outside Python handles a signal: faulthandler, or a backend that watches for preemption."""
    return handler is None or (not callable(handler) and number in caught_signals())


def caught_signals() -> Iterator[int]:
    """Yield the signals that this process handles, where the system lists them: on Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for line in status.splitlines():
        if line.startswith("SigCgt:"):
            mask = int(line.partition(":")[2], 16)
            yield from (number for number in range(1, 65) if mask >> (number - 1) & 1)
