"""Stacks on demand: a signal at which this process writes the Python stacks of all its threads to a file.

The handler is C code of `faulthandler`, so that it answers while the interpreter hangs, or a thread holds its lock.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path

from ckptstore.system.signal_handlers import caught_signals
from ckptstore.system.supervisor_variables import LOG_VARIABLE, SUPERVISOR_VARIABLE

# The first real-time signal that is tried: others are in use by some debuggers and runtimes.
_FIRST = 7


class StackDump:
    """The signal of this process, from `register` to `close`.

    A program that has handled the signal since keeps its handler.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int, descriptor: int) -> None:
        self.signal = number
        self._descriptor = descriptor

    @classmethod
    def for_supervisor(cls) -> StackDump | None:
        """Write the stacks to the log that a supervisor keeps of this process, or to stderr if that is its log.

        Returns:
            None where no supervisor started this process, and as `register`.
        """
        log = os.environ.get(LOG_VARIABLE)
        if log:
            return cls.register(Path(log))
        return cls.register(Path("/dev/stderr")) if os.environ.get(SUPERVISOR_VARIABLE) else None

    @classmethod
    def register(cls, path: Path) -> StackDump | None:
        """Choose a real-time signal that nobody in this process handles, and write the stacks to a file at it.

        Args:
            path: The file, to which the stacks are appended.

        Returns:
            None where no signal is free, the file cannot be opened, or the system has no such signals.
        """
        number = _free_signal()
        if number is None:
            return None
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            faulthandler.register(number, file=descriptor, all_threads=True, chain=False)
        except (OSError, RuntimeError, ValueError):
            os.close(descriptor)
            return None
        return cls(number, descriptor)

    def close(self) -> None:
        """Give the signal back, unless the program has taken it; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if signal.getsignal(self.signal) in (signal.SIG_DFL, None):
            faulthandler.unregister(self.signal)
        with suppress(OSError):
            os.close(descriptor)


def _free_signal() -> int | None:
    if not hasattr(signal, "SIGRTMIN") or not hasattr(faulthandler, "register"):
        return None
    taken = set(caught_signals())
    for number in range(signal.SIGRTMIN + _FIRST, signal.SIGRTMAX):
        if number not in taken and signal.getsignal(number) == signal.SIG_DFL:
            return number
    return None
