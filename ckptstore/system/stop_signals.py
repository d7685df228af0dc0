"""Stop requests by signal: a handler only notes one; the training looks between two batches, saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from signal import Signals
from types import FrameType, TracebackType
from typing import Any, Self

from ckptstore.errors import InvalidArgumentError
from ckptstore.system.signal_handlers import SharedHandlers

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again. Job queues and `ckptstore run` do.
TRY_AGAIN = 75
STOP_SIGNALS: tuple[Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)

_UNCATCHABLE = frozenset({"SIGKILL", "SIGSTOP"})


class TrainingInterrupted(SystemExit):
    """A signal asked the training to stop; its state was saved. A script that lets it pass ends with `code`.

    Args:
        signal: The signal.
        exit_code: What the process ends with; 75 by default, on which `ckptstore run` and job queues start it again.

    Attributes:
        signal: The signal.
        code: The exit code.
        message: One line that says what happened.

    Example:
        >>> error = TrainingInterrupted(signal.SIGTERM)
        >>> print(error.code, error)
        75 stopped by SIGTERM; what was trained is saved, and the same command goes on from it
    """

    code: int
    signal: Signals
    message: str

    def __init__(self, signal: Signals, exit_code: int = TRY_AGAIN) -> None:
        super().__init__(exit_code)
        self.signal = signal
        self.message = (
            f"stopped by {signal.name}; what was trained is saved, and the same command goes on from it"
        )

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal, self.code)


class StopRequest:
    """A request to stop, which signals make and the training looks for between two batches.

    While it is installed, the first of the signals is only noted, in `received`. The caller saves and then calls
    `deliver`. A second signal stops at once, as it would have without us; SIGTERM come twice within 3 seconds counts
    once, since some programs send it to a process and to its group. Any number may be installed at a time, each sees
    the request. Forked children, such as the workers of a data loader, have the handlers from before.

    Only the main thread of the main interpreter may handle signals; elsewhere `install` does nothing.

    Args:
        signals: Which signals; those that the platform does not know are left out.
        exit_code: What `TrainingInterrupted` ends the process with.

    Attributes:
        signals: The signals that it looks for.
        skipped: Those that a handler from outside Python has, which stays.
        is_polled: Tells, of the frame that a signal interrupts, whether anybody will look for it; None for yes. A
            training that an exception ended without `uninstall` must not keep the process from being ended.

    Raises:
        InvalidArgumentError: No process can handle one of the signals.

    Example:
        >>> with StopRequest() as stop:
        ...     for batch in range(3):
        ...         if stop.received:  # save here
        ...             stop.deliver()
        >>> print(stop.received)
        None
    """

    def __init__(self, signals: Sequence[Signals] = STOP_SIGNALS, *, exit_code: int = TRY_AGAIN) -> None:
        for number in signals:
            if getattr(number, "name", "") in _UNCATCHABLE:
                raise InvalidArgumentError(
                    argument="signals", value=number.name, reason="no process can handle it"
                )
        known = signal.valid_signals()
        self.signals = tuple(Signals(number) for number in signals if number in known)
        self.exit_code = exit_code
        self.skipped: tuple[Signals, ...] = ()
        self.is_polled: Callable[[FrameType | None], bool] | None = None
        self._installation: SharedHandlers | None = None
        self._delivered = False

    @property
    def installed(self) -> bool:
        """True from `install` to `uninstall`, or to a second signal; False in a forked child."""
        return self._installation is not None and self in self._installation.users

    @property
    def received(self) -> Signals | None:
        """The signal that asks for a stop, until it is delivered; `uninstall` does not forget it."""
        if self._installation is None or self._delivered:
            return None
        received = self._installation.received
        return received if received in self.signals else None

    def install(self) -> None:
        """Begin to look for signals; one that another installed request has already seen counts."""
        if self.installed or threading.current_thread() is not threading.main_thread():
            return
        installation = SharedHandlers.shared()
        try:
            self.skipped = installation.join(self)
        except ValueError:  # not the main interpreter
            installation.users.discard(self)
            return
        self._installation, self._delivered = installation, False

    def uninstall(self) -> None:
        """Put the old handlers back where ours stand and nobody else looks; may be called again.

        A request that came in the last moment is still in `received`: look, and `deliver` it.
        """
        if self._installation is not None:
            self._installation.users.discard(self)
            self._installation.put_back()

    def deliver(self) -> None:
        """Let the signal have its effect, now that the state is saved; does nothing if none was received.

        An old handler that is a function is called first, once for all installed requests.

        Raises:
            KeyboardInterrupt: It was SIGINT.
            TrainingInterrupted: It was another one.
        """
        received = self.received
        if received is None or self._installation is None:
            return
        self._delivered = True
        self._installation.chain(received)
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
