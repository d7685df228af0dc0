"""Calls a function in a forked child process that lives for a moment, and returns its result.

What the function loads is gone with the child, and a call that crashes or hangs does not harm this process.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ckptstore.errors import CheckpointStoreError, NotAStoreError
from ckptstore.supervisor.signals import blocked_for_fork, leave_in_child

_T = TypeVar("_T")
# A file system that does not answer must not keep the supervisor from its work.
_LONGEST_ANSWER_S = 120.0
# Between tries to start the child: a machine that has no room for another process may have soon.
_PAUSES_S = (0.1, 0.3, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class _Complaint:
    """The reason why there is no result."""

    text: str


def call_in_child(function: Callable[[], _T], otherwise: Callable[[str], _T]) -> _T:
    """Call a function about a store in a forked child, and return its result.

    Args:
        function: The function; its result can be pickled.
        otherwise: Makes the result where there is none, because the function raised, died, or took more than two
            minutes; called with the reason.

    Raises:
        NotAStoreError: The child raised it.
    """
    try:
        pid, reader = _asked(function)
    except OSError as error:
        return otherwise(f"no process can be started to ask it: {error.strerror}")
    try:
        text = _read_all(reader, time.monotonic() + _LONGEST_ANSWER_S)
    finally:
        os.close(reader)
        if not _reaped(pid):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            _reaped(pid)
    if text is None:
        return otherwise(f"the store has not answered within {_LONGEST_ANSWER_S:g} s")
    try:
        answer: _T | NotAStoreError | _Complaint = pickle.loads(text)
    except (EOFError, pickle.UnpicklingError):
        return otherwise("the process that asked the store has died")
    if isinstance(answer, NotAStoreError):
        raise answer
    return otherwise(answer.text) if isinstance(answer, _Complaint) else answer


def _asked(function: Callable[[], Any]) -> tuple[int, int]:
    """Start the child; returns its id and the descriptor from which its answer is read.

    Raises:
        OSError: The machine has had no room for a process for some seconds.
    """
    for pause_s in (*_PAUSES_S, None):
        reader, writer = os.pipe()
        try:
            with blocked_for_fork():
                pid = os.fork()
                if pid == 0:
                    _answer(function, writer)
        except OSError:
            os.close(reader)
            if pause_s is None:
                raise
            time.sleep(pause_s)
        else:
            return pid, reader
        finally:
            os.close(writer)
    raise AssertionError


def _answer(function: Callable[[], Any], writer: int) -> None:
    """Call the function in the child, which ends here and flushes nothing of the parent's."""
    try:
        leave_in_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            answer = function()
        except NotAStoreError as error:
            answer = error
        except CheckpointStoreError as error:
            answer = _Complaint(str(error))
        except Exception as error:
            # The text alone: an exception of another package would load that into the supervisor, or not load at all.
            answer = _Complaint(repr(error))
        with os.fdopen(writer, "wb") as file:
            pickle.dump(answer, file)
    finally:
        os._exit(0)


def _read_all(reader: int, until: float) -> bytes | None:
    pieces: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        piece = os.read(reader, 1 << 16)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _reaped(pid: int) -> bool:
    """Reap the child if it ends within a second or is killed; returns False if it has not ended."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] != 0:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.001)
    return False
