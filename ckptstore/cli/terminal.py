"""A terminal whose whole screen shows one thing, and whose keys are read one by one; it is always given back."""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from ckptstore.report.glyphs import Glyphs, glyphs_for

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

# They end the program; a terminal that is gone ends it like SIGHUP.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STOP, _CONTINUE, _RESIZE = signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH
_ARROWS = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down"}
# Of the keys that send more than a character, the whole sequence.
_KEY = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
_UNFINISHED = re.compile(rb"\x1b(\[[0-?]*[ -/]*|O)?\Z")
# Seconds to wait for the rest of an arrow key, whose bytes may come one by one.
_REST_S = 0.05


class TerminalEndedError(Exception):
    """A signal, or the loss of the terminal, ends the program.

    Attributes:
        signal: The signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Terminal:
    """The terminal that this process runs on, for as long as the block lasts.

    Its screen is replaced, and comes back, with its settings, however the block ends: by an exception, by SIGINT,
    SIGTERM, SIGHUP or SIGQUIT, and for as long as SIGTSTP (Ctrl-Z) stops the process. Only SIGKILL leaves it as it is.

    Args:
        output: The stream of the screen, a terminal.
        keys: The stream of the keys; keys are read only if it is a terminal.
    """

    def __init__(self, output: TextIO, keys: TextIO | None) -> None:
        self._output = output
        self._screen = output.fileno()
        self._keys = keys.fileno() if keys is not None and not keys.closed and keys.isatty() else None
        self._settings: list[Any] | None = None
        self._live: Live | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._wakeup = -1
        self._signals: set[int] = set()

    @property
    def glyphs(self) -> Glyphs:
        """The characters that it can show, by its encoding; ASCII alone where the locale is C."""
        locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
        return glyphs_for("ascii" if locale in ("C", "POSIX") else self._output.encoding)

    @property
    def size(self) -> tuple[int, int]:
        """Its columns and lines; 80 and 24 where it does not tell."""
        try:
            size = os.get_terminal_size(self._screen)
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def __enter__(self) -> Terminal:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*_ENDING, _STOP, _CONTINUE, _RESIZE):
            # What is ignored stays so: nohup ignores SIGHUP, and a shell without jobs SIGINT.
            if number is _STOP or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def show(self, screen: Text) -> None:
        """Show a screen, made for the terminal's size.

        Raises:
            TerminalEndedError: A signal asks to end, or the terminal is gone.
        """
        from rich.console import ConsoleDimensions

        self._check()
        if self._live is not None:
            with self._lost_is_hangup():
                self._live.console.size = ConsoleDimensions(*self.size)
                self._live.update(screen, refresh=True)

    def wait(self, seconds: float, also: int | None = None) -> list[str]:
        """Wait for keys, and return them, each as its character, ``"up"`` or ``"down"``.

        It returns earlier when the screen must be shown again, since its size has changed or the process was stopped
        and continued, and when there is something to read from `also`.

        Raises:
            TerminalEndedError: A signal asks to end, or the terminal is gone.
        """
        self._check()
        watched = [
            self._reader,
            *([] if also is None else [also]),
            *([] if self._keys is None else [self._keys]),
        ]
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if self._reader in ready:
            with suppress(BlockingIOError):
                os.read(self._reader, 4096)
        self._check()
        return list(self._read_keys()) if self._keys in ready else []

    def _read_keys(self) -> Iterator[str]:
        assert self._keys is not None
        with self._lost_is_hangup():
            data = os.read(self._keys, 1024)
            # The rest of an arrow key may still be on its way.
            while _UNFINISHED.search(data) and select.select([self._keys], [], [], _REST_S)[0]:
                data += os.read(self._keys, 1024)
        if not data:
            raise TerminalEndedError(signal.SIGHUP)
        for key in _KEY.findall(data):
            yield _ARROWS.get(key) or key.decode("ascii", "replace")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.add(number)

    def _check(self) -> None:
        """Do what the signals since the last check ask for."""
        if _STOP in self._signals:
            self._stop()
        elif _CONTINUE in self._signals:
            # It was stopped by SIGSTOP, and the shell has used the terminal since.
            self._give_back()
            self._take()
        self._signals -= {_STOP, _CONTINUE, _RESIZE}
        for number in _ENDING:
            if number in self._signals:
                raise TerminalEndedError(number)

    def _stop(self) -> None:
        """Stop this process, as SIGTSTP does, with the terminal as it was before; go on when it is continued."""
        self._give_back()
        mine = signal.signal(_STOP, signal.SIG_DFL)
        os.kill(os.getpid(), _STOP)
        signal.signal(_STOP, mine)
        self._take()

    def _take(self) -> None:
        from rich.console import Console
        from rich.live import Live

        with self._lost_is_hangup():
            if self._keys is not None:
                self._settings = termios.tcgetattr(self._keys)
                tty.setcbreak(self._keys, termios.TCSANOW)
            console = Console(file=self._output, highlight=False, force_terminal=True)
            self._live = Live(
                console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()

    def _give_back(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):  # the terminal may be gone
                live.stop()
                self._output.flush()
        settings, self._settings = self._settings, None
        if settings is not None and self._keys is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSANOW, settings)

    @contextmanager
    def _lost_is_hangup(self) -> Iterator[None]:
        try:
            yield
        except (OSError, termios.error) as error:
            raise TerminalEndedError(signal.SIGHUP) from error
