"""Stop requests by signal: a handler only records the signal; the training polls between batches, saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from signal import Signals
from types import FrameType, TracebackType
from typing import Any, Self

from ckptstore.errors import InvalidArgumentError
from ckptstore.system import messages
from ckptstore.system.signal_handlers import SharedHandlers

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again. Job queues and `ckptstore run` start the process again.
TRY_AGAIN = 75
STOP_SIGNALS: tuple[Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)

_UNCATCHABLE = frozenset({"SIGKILL", "SIGSTOP"})


class TrainingInterrupted(SystemExit):
    """Raised when a signal stopped the training, after its state was saved; uncaught, it ends the script with `code`.

    Args:
        signal: The signal.
        exit_code: The exit code of the process. By default 75, after which `ckptstore run` and job queues restart it.

    Attributes:
        signal: The signal.
        code: The exit code.
        message: A description in one line.

    Example:
        >>> error = TrainingInterrupted(signal.SIGTERM)
        >>> print(error.code, error)
        75 stopped by SIGTERM; the training state is saved, and the same command resumes from it
    """

    code: int
    signal: Signals
    message: str

    def __init__(self, signal: Signals, exit_code: int = TRY_AGAIN) -> None:
        super().__init__(exit_code)
        self.signal = signal
        self.message = (
            f"stopped by {signal.name}; the training state is saved, and the same command resumes from it"
        )

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal, self.code)


class StopRequest:
    """A request to stop that is made by a signal, and polled by the training between batches.

    While it is installed, the first of the signals is only recorded, in `received`. The caller saves and then calls
    `deliver`. A second signal stops at once, as it would have without us. The same signal twice within 3 seconds counts
    once, since some programs send it to a process and to its group; SIGINT always counts. Any number of requests may be
    installed at a time, and each sees the signal. Forked children, such as the workers of a data loader, have the old
    handlers.

    Only the main thread of the main interpreter may handle signals; elsewhere `install` does nothing.

    Args:
        signals: The signals; those that the platform does not know are left out.
        exit_code: The exit code of `TrainingInterrupted`.
        takes_over: The signals whose handler from outside Python is replaced while this is installed, and put back
            after it. A backend's own watch for preemption does not see them meanwhile.

    Attributes:
        signals: The signals that it polls for.
        skipped: The signals that a handler from outside Python handles, and keeps.
        is_polled: A function from the frame that a signal interrupts to whether anybody will poll; None for always. A
            training that an exception ended without `uninstall` must not swallow the signals that end the process.

    Raises:
        InvalidArgumentError: One of the signals cannot be handled by any process.

    Example:
        >>> with StopRequest() as stop:
        ...     for batch in range(3):
        ...         if stop.received:  # save here
        ...             stop.deliver()
        >>> print(stop.received)
        None
    """

    def __init__(
        self,
        signals: Sequence[Signals] = STOP_SIGNALS,
        *,
        exit_code: int = TRY_AGAIN,
        takes_over: Sequence[Signals] = (),
    ) -> None:
        for number in signals:
            if getattr(number, "name", "") in _UNCATCHABLE:
                raise InvalidArgumentError(
                    argument="signals", value=number.name, reason="no process can handle it"
                )
        known = signal.valid_signals()
        self.signals = tuple(Signals(number) for number in signals if number in known)
        self.exit_code = exit_code
        self.takes_over = tuple(takes_over)
        self.skipped: tuple[Signals, ...] = ()
        self.is_polled: Callable[[FrameType | None], bool] | None = None
        self._handlers: SharedHandlers | None = None
        self._delivered = False

    @property
    def installed(self) -> bool:
        """True from `install` to `uninstall`, or to a second signal; False in a forked child."""
        return self._handlers is not None and self in self._handlers.watchers

    @property
    def received(self) -> Signals | None:
        """The signal that asks for a stop, until it is delivered; `uninstall` keeps it."""
        if self._handlers is None or self._delivered:
            return None
        received = self._handlers.received
        return received if received in self.signals else None

    def install(self) -> None:
        """Begin to watch for signals; one that another installed request has already seen counts."""
        if self.installed or threading.current_thread() is not threading.main_thread():
            return
        handlers = SharedHandlers.for_signals(self.signals)
        try:
            self.skipped = handlers.add(self)
        except ValueError:  # not the main interpreter
            handlers.watchers.discard(self)
            return
        self._handlers, self._delivered = handlers, False

    def uninstall(self) -> None:
        """Restore the old handlers where ours are installed and nobody else polls. May be called again.

        A signal that came at the last moment is still in `received`: check it, and `deliver` it.
        """
        if self._handlers is not None:
            self._handlers.watchers.discard(self)
            self._handlers.restore()

    def reached(self, step: int, *, epoch_ended: bool) -> None:
        """Tell how far training has come; a request that several processes share decides by it where all stop.

        Args:
            step: Finished train batches.
            epoch_ended: True at an epoch's end, which comes after its last batch.
        """

    def deliver(self) -> None:
        """Let the signal take effect, now that the state is saved; does nothing if none was received.

        An old handler that is a function is called first, once for all installed requests.

        Raises:
            KeyboardInterrupt: The signal was SIGINT.
            TrainingInterrupted: It was another signal.
        """
        received = self.received
        if received is None or self._handlers is None:
            return
        self._delivered = True
        self._handlers.call_old_handler(received)
        messages.keep_exit_code("stdout", "stderr")
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise TrainingInterrupted(received, self.exit_code)

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()
