"""A terminal with a screen, which tests read and whose keys they press."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence

import pyte


class Screen:
    """A terminal with a screen, on which a command runs in a shell with job control, as a person would run it.

    Args:
        command: Program and arguments.
        size: Columns and lines.
        environment: Beside that of this process.
        shell: True to start it from an interactive bash, in which Ctrl-Z stops it.

    Attributes:
        process: The command, or the shell.
        written: All bytes that were written to the terminal.
    """

    def __init__(
        self,
        command: Sequence[object],
        size: tuple[int, int] = (80, 24),
        environment: Mapping[str, str] | None = None,
        *,
        shell: bool = False,
    ) -> None:
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self._ours, self._theirs = pty.openpty()
        self.resize(*size)
        words = ["bash", "--norc", "-i"] if shell else [str(word) for word in command]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_ITS_TERMINAL, *words],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**os.environ, "TERM": "xterm-256color", "PS1": "$ ", **(environment or {})},
        )

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without spaces at their ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The lines in one text."""
        return "\n".join(self.lines)

    def press(self, keys: str) -> None:
        """Type keys."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal; its program gets SIGWINCH."""
        termios.tcsetwinsize(self._theirs, (lines, columns))
        self._screen.resize(lines, columns)

    def is_plain(self) -> bool:
        """Return True if the terminal echoes what is typed, and passes it on by lines, as before the command."""
        flags = termios.tcgetattr(self._theirs)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def hang_up(self) -> None:
        """Lose the terminal, as when a connection breaks."""
        os.close(self._theirs)
        os.close(self._ours)

    def until(self, found: Callable[[Screen], object], *, seconds: float = 60) -> None:
        """Read what is written until something is found on the screen; fails with the screen if it never is."""
        limit = time.monotonic() + seconds
        while not found(self):
            ready = select.select([self._ours], [], [], max(0.0, limit - time.monotonic()))[0]
            assert ready, f"not in time:\n{self.text}"
            data = os.read(self._ours, 65536)
            self.written += data
            self._stream.feed(data)

    def shows(self, pattern: str, *, seconds: float = 60) -> None:
        """Read until the screen matches a regular expression."""
        self.until(lambda screen: re.search(pattern, screen.text, re.MULTILINE), seconds=seconds)

    def ends(self, *, seconds: float = 60) -> int:
        """Wait for the end of the process, with all that it writes, and return its exit code."""
        limit = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < limit, f"did not end:\n{self.text}"
            if select.select([self._ours], [], [], 0.05)[0]:
                self.written += (data := os.read(self._ours, 65536))
                self._stream.feed(data)
        return self.process.returncode


# Makes the terminal on stdin the controlling one of a new session, and becomes the command.
_ON_ITS_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"
