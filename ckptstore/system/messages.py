"""The messages of the package: lines on stdout or stderr, and warnings. No message ends a training or keeps a lock.

All modules except the command line print and warn through here. A stream may be missing, closed, full, unable to
encode a name, or a pipe without a reader: then the message is lost, and nothing else happens. What a name from a store
could do to a terminal is escaped. Where a pipe has a reader that does not read, a write would never return; a message
waits for a second, and is then left out.

A filter may turn warnings into exceptions (``python -W error``). They are raised, as the user has asked, but not in the
middle of work that must be complete: see `held_back`.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore.printable import printable_lines

# Seconds to wait for a stream that takes nothing. After the first time, later messages to it do not wait.
BLOCKED_AFTER_S = 1.0
# Characters written at a time. Escaped, each takes at most 10 bytes, and a pipe that is ready takes 4096.
_PIECE = 400

_blocked: set[int] = set()
# This package's folder, and files of Python through which its calls pass.
_PACKAGE = str(Path(__file__).parents[1])
_BETWEEN = ("contextlib.py", "functools.py")


@dataclass(frozen=True, slots=True)
class HeldWarning:
    """A warning that is to be issued later."""

    text: str
    category: type[Warning]


class _Held(threading.local):
    """The warnings that the blocks of this thread hold back, innermost last."""

    blocks: tuple[list[HeldWarning], ...] = ()


_held = _Held()


# --- lines -----------------------------------------------------------------------------------------


def log(text: str) -> None:
    """Print a line on stderr; raises nothing."""
    _print("stderr", text)


def print_by(function: Callable[[str], object], text: str) -> None:
    """Let a function, such as Keras' own, print a line on stdout; what it raises is suppressed."""
    with suppress(Exception):
        if not can_write(sys.stdout):
            return
        function(_escaped(text, sys.stdout))
        sys.stdout.flush()
        return
    keep_exit_code("stdout")


def _print(name: str, text: str) -> None:
    # The attributes of `sys` may be missing, and a program may have put any object in their place.
    with suppress(Exception):
        stream = getattr(sys, name)
        line = f"{_escaped(text, stream)}\n"
        for begin in range(0, len(line), _PIECE):
            if stream is None or not can_write(stream):
                return
            stream.write(line[begin : begin + _PIECE])
            stream.flush()
        return
    keep_exit_code(name)


def _escaped(text: str, stream: Any) -> str:
    """Return text without what could act on a terminal, or cannot be encoded."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable_lines(text).encode(encoding, "backslashreplace").decode(encoding)


def can_write(stream: Any) -> bool:
    """Return False if a write to a stream would wait: its reader is there, but has not read for some time."""
    try:
        descriptor = stream.fileno()
        poll = select.poll()
    except Exception:
        return True  # no file, but an object in its place; or a platform without poll
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0 if descriptor in _blocked else 1000 * BLOCKED_AFTER_S):
        _blocked.discard(descriptor)
        return True
    _blocked.add(descriptor)
    return False


# --- warnings --------------------------------------------------------------------------------------


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning, or hold it back in a block that does so; see `warnings.warn`.

    It is shown with the user's line that led to it, such as the call of ``fit``. What could act on a terminal is
    escaped: a warning may quote a payload.

    Raises:
        Warning: A filter turns it into an exception. Nothing else is raised.
    """
    text = printable_lines(text)
    if _held.blocks:
        _held.blocks[-1].append(HeldWarning(text, category))
        return
    if not can_write(getattr(sys, "stderr", None)):
        return
    try:
        warnings.warn(text, category, stacklevel=_level_of_user())
    except Warning:
        raise
    except Exception:
        # It cannot be printed; or a function that a program put in the place of `warnings.showwarning` failed.
        keep_exit_code("stderr")


def _level_of_user() -> int:
    """Return the ``stacklevel``, as seen from the caller, of the first frame outside of this package and Keras."""
    keras = getattr(sys.modules.get("keras"), "__file__", None)
    passed = tuple(f"{folder}{os.sep}" for folder in (_PACKAGE, keras and os.path.dirname(keras)) if folder)  # noqa: PTH120
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(passed) and Path(file).name not in _BETWEEN:
            return level
        frame, level = frame.f_back, level + 1
    return 2  # a thread of this package's own


@contextmanager
def held_back(*, may_raise: bool = True) -> Iterator[None]:
    """Hold warnings back in this thread, and issue them after the block, when no work is left half done.

    Where a filter turns one into an exception, the others are issued first. It is printed on stderr in place of being
    raised if the block itself has raised: it must not replace that error.

    Args:
        may_raise: False to print such a warning on stderr in any case: the exit code is already decided.

    Raises:
        Warning: A filter turns one of them into an exception.
    """
    raised = True
    try:
        with collected() as found:
            yield
        raised = False
    finally:
        issue(found, may_raise=may_raise and not raised)


@contextmanager
def collected() -> Iterator[list[HeldWarning]]:
    """Collect the warnings that are issued in this thread within the block, for the caller to issue."""
    found: list[HeldWarning] = []
    before, _held.blocks = _held.blocks, (*_held.blocks, found)
    try:
        yield found
    finally:
        _held.blocks = before


def issue(found: list[HeldWarning], *, may_raise: bool = True) -> None:
    """Issue warnings that were collected; if filters turn some into exceptions, the first is raised after the last."""
    first = None
    for held in found:
        try:
            warn(held.text, held.category)
        except Warning as error:
            if may_raise and first is None:
                first = error
            else:
                log(f"{held.category.__name__}: {held.text}")
    if first is not None:
        raise first


# --- the exit code ---------------------------------------------------------------------------------

# The names of the streams that must not decide about it.
_discarded_at_exit: set[str] = set()


def keep_exit_code(*streams: str) -> None:
    """Make sure that the interpreter does not exit with 120 because a stream cannot be written.

    Args:
        *streams: ``"stdout"`` and ``"stderr"``; at exit, what they hold and cannot write is discarded.
    """
    _discarded_at_exit.update(streams)


@atexit.register
def _discard_unwritable() -> None:
    for name in _discarded_at_exit:
        with suppress(Exception):
            stream = getattr(sys, name)
            try:
                stream.flush()
            except OSError:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
