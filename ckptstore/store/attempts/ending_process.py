"""Records the ends of attempts that are still being made when an exception, or its own end, ends this process.

Most trainings record their end by themselves. This is for loops by hand whose store is never closed, and for exceptions
that end a fit where none of its hooks is called.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol


class Recorder(Protocol):
    """Records the attempts of one store."""

    def failed(self, error: BaseException, *, thread: int | None = None) -> None:
        """Record that an exception has ended the attempts of a thread."""

    def close(self) -> None:
        """Record the ends of all attempts."""


_recorders: dict[int, Recorder] = {}
_before: dict[str, Callable[..., Any]] = {}
_lock = threading.Lock()


def add(recorder: Recorder) -> None:
    """Record the ends of a recorder's attempts when this process ends, until `remove`."""
    with _lock:
        _recorders[id(recorder)] = recorder
        if "process" not in _before:
            _before["process"], sys.excepthook = sys.excepthook, _process_fails
        if "thread" not in _before:
            _before["thread"], threading.excepthook = threading.excepthook, _thread_fails


def remove(recorder: Recorder) -> None:
    """Forget a recorder, which makes no attempts any more; with the last one, Python's hooks are what they were."""
    with _lock:
        if _recorders.pop(id(recorder), None) is None or _recorders:
            return
        # A hook that the program has installed since calls ours, which stays.
        if sys.excepthook is _process_fails:
            sys.excepthook = _before.pop("process")
        if threading.excepthook is _thread_fails:
            threading.excepthook = _before.pop("thread")


def _process_fails(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    before = _before["process"]  # the last record of an end takes it away
    _record(error, threading.main_thread().ident)
    before(kind, error, trace)


def _thread_fails(arguments: Any) -> None:
    before = _before["thread"]
    if arguments.exc_value is not None and arguments.thread is not None:
        _record(arguments.exc_value, arguments.thread.ident)
    before(arguments)


def _record(error: BaseException, thread: int | None) -> None:
    for recorder in list(_recorders.values()):
        recorder.failed(error, thread=thread)


@atexit.register
def _process_ends() -> None:
    for recorder in list(_recorders.values()):
        recorder.close()
