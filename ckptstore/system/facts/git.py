"""Commit of a directory's git repository, and how its files differ from it; asked in a thread, with a time limit.

Git is asked with ``GIT_OPTIONAL_LOCKS=0`` and without the repository's own programs (hooks, monitors, external
differences): it changes nothing, and runs nothing that it would not otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 10.0
# Bytes of the difference that are kept.
MOST_NBYTES = 256 << 10
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
_COMMIT = ("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
_DIFF = ("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFacts:
    """State of a repository; all empty where there is none, or no git.

    Attributes:
        commit: The commit that is checked out, in full, or None.
        dirty: True if files that git knows differ from it; None where that is not known.
        diff: How they differ, as ``git diff`` writes it, up to `MOST_NBYTES`.
        note: Why something is not known, or that the difference is longer; None if all is known.
    """

    commit: str | None = None
    dirty: bool | None = None
    diff: bytes = b""
    note: str | None = None


class GitQuestion:
    """A question to git about a directory, which a thread asks.

    Args:
        directory: The directory.
        limit_s: Seconds after which git is killed, and what it has not answered stays unknown.
    """

    def __init__(self, directory: str, limit_s: float = LIMIT_S) -> None:
        self._directory = directory
        self._until = time.monotonic() + limit_s
        self._limit_s = limit_s
        self._answer = GitFacts()
        self._process: subprocess.Popen[bytes] | None = None
        self._done = threading.Event()
        threading.Thread(target=self._ask, name="ckptstore-git", daemon=True).start()

    def answer(self, wait_s: float = 0.0) -> GitFacts | None:
        """Return the answer, or None if there is none after `wait_s` seconds."""
        return self._answer if self._done.wait(wait_s) else None

    def give_up(self) -> None:
        """Kill git if it has not answered."""
        self._until = 0.0
        process = self._process
        if process is not None and not self._done.is_set():
            _kill(process)

    def _ask(self) -> None:
        try:
            self._answer = self._facts()
        except (OSError, ValueError):
            self._answer = GitFacts()  # there is no git here, or no such directory any more
        finally:
            self._done.set()

    def _facts(self) -> GitFacts:
        code, commit = self._output(_COMMIT, 200)
        if code is None:
            return GitFacts(note=f"git did not answer within {self._limit_s:g} s")
        name = commit.decode("ascii", "replace").strip()
        if code != 0 or not name:
            return GitFacts()
        code, diff = self._output(_DIFF, MOST_NBYTES)
        if len(diff) > MOST_NBYTES:
            note = f"the difference is longer than {MOST_NBYTES >> 10} KiB; the rest was left out"
            return GitFacts(commit=name, dirty=True, diff=diff[:MOST_NBYTES], note=note)
        if code != 0:
            why = f"git did not answer within {self._limit_s:g} s" if code is None else "git failed"
            return GitFacts(commit=name, note=f"the difference is not known: {why}")
        return GitFacts(commit=name, dirty=bool(diff), diff=diff)

    def _output(self, arguments: Sequence[str], most: int) -> tuple[int | None, bytes]:
        """Return exit code and output, a byte more than `most` if there is more; the code is None if it was killed."""
        if time.monotonic() > self._until:
            return None, b""
        with subprocess.Popen(
            [*_GIT, *arguments],
            cwd=self._directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        ) as process:
            self._process = process
            timer = threading.Timer(max(0.0, self._until - time.monotonic()), _kill, [process])
            timer.daemon = True
            timer.start()
            try:
                assert process.stdout is not None
                output = process.stdout.read(most + 1)
            finally:
                is_late = not timer.is_alive() or self._until == 0.0
                timer.cancel()
                if len(output) > most:
                    _kill(process)
                code = process.wait()
        return (None if is_late and code < 0 else code), output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git and what it has started, which would keep its output open."""
    if process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> Mapping[str, str]:
    return {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


class _Process:
    """The questions of this process, by directory: the code that it runs is the one that it was started with."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.questions: dict[str, GitQuestion] = {}


_process = _Process()
# A child has none of the threads that ask.
os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]


def ask_git(directory: str | None = None) -> GitQuestion:
    """Ask git about a directory, once in a process; returns at once.

    Args:
        directory: The directory; None for the working directory.

    Example:
        >>> ask_git("/").answer(wait_s=20).commit is None
        True
    """
    asked = str(Path.cwd()) if directory is None else directory
    with _process.lock:
        if asked not in _process.questions:
            _process.questions[asked] = GitQuestion(asked)
        return _process.questions[asked]
