"""The reason that an exception stands for, and what is recorded of it."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ckptstore.records import EndReason
from ckptstore.system.facts.secrets import without_passwords
from ckptstore.system.stop_signals import TrainingInterrupted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Frames, characters of a message, and causes that are looked at.
_FRAMES, _LONGEST, _DEEPEST = 5, 1000, 20
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def by_error(error: BaseException) -> tuple[EndReason, dict[str, Any]]:
    """Return the reason for the end of a training that an exception ended, and what is recorded of it.

    Example:
        >>> by_error(OSError(errno.ENOSPC, "No space left on device"))[0], by_error(KeyboardInterrupt())[0]
        ('disk_full', 'interrupted')
        >>> by_error(ValueError("no such file"))
        ('exception', {'type': 'ValueError', 'message': 'no such file', 'frames': []})
    """
    if isinstance(error, TrainingInterrupted):
        return "preempted", {"signal": error.signal.name}
    detail = description(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", detail
    is_full = any(isinstance(cause, OSError) and cause.errno in _FULL for cause in _with_causes(error))
    return ("disk_full" if is_full else "exception"), detail


def description(error: BaseException) -> dict[str, Any]:
    """Return type and message of an exception and its last frames; the last in the user's own files is among them."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        message = str(error)
    except Exception as failure:
        message = f"(its message cannot be shown: {type(failure).__name__})"
    return {
        "type": name,
        "message": _plain(message)[:_LONGEST],
        "frames": [_plain(frame) for frame in _frames(error.__traceback__)],
    }


def _plain(text: str) -> str:
    return without_passwords(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _frames(trace: TracebackType | None) -> list[str]:
    calls = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)]
    shown = calls[-_FRAMES:]
    own = [call for call in calls if not call[0].co_filename.startswith(_INSTALLED)]
    if own and own[-1] not in shown:
        shown[0] = own[-1]
    return [f"{code.co_filename}:{line} in {code.co_qualname}" for code, line in shown]


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, nearest first."""
    found: BaseException | None = error
    for _ in range(_DEEPEST):
        if found is None:
            return
        yield found
        if isinstance(found, BaseExceptionGroup):
            for one in found.exceptions:
                yield from _with_causes(one)
        found = found.__cause__ or found.__context__
