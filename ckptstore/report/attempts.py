"""Text about attempts: a table of them, and how each ended and on which code it ran, in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ckptstore.printable import printable
from ckptstore.records import Attempt
from ckptstore.report.table import TextTable, column
from ckptstore.report.text import age_text, time_text

_REASON, _CODE, _HOST = 90, 50, 30
_LONGEST = 60


def attempt_table(attempts: Sequence[Attempt], *, now: datetime | None = None) -> TextTable:
    """Return a table of attempts, a row for each.

    Args:
        attempts: The attempts.
        now: The time up to which those that run have lasted; None for the present.
    """
    until = now or datetime.now(UTC)
    return TextTable(
        [
            column("run", (printable(attempt.run) for attempt in attempts), left=True),
            column("attempt", (str(attempt.attempt) for attempt in attempts)),
            column("began", (time_text(attempt.started_at) for attempt in attempts), left=True),
            column("lasted", (duration_text(attempt, until) for attempt in attempts)),
            column("ended", (reason_text(attempt) for attempt in attempts), left=True, priority=_REASON),
            column("from", (_number(attempt.resumed_from) for attempt in attempts), priority=70),
            column("lost", (_number(attempt.batches_lost) for attempt in attempts), priority=60),
            column("code", (code_text(attempt) for attempt in attempts), left=True, priority=_CODE),
            column("host", (printable(attempt.host) for attempt in attempts), left=True, priority=_HOST),
        ]
    )


def _number(number: int | None) -> str:
    return "" if number is None else str(number)


def duration_text(attempt: Attempt, now: datetime) -> str:
    """Return how long an attempt lasted, or has lasted so far."""
    return age_text(((attempt.ended_at or now) - attempt.started_at).total_seconds())


def code_text(attempt: Attempt) -> str:
    """Return the commit that an attempt ran on, with ``+`` if files differed from it; empty where it is not known.

    Example:
        >>> began = datetime.now(UTC)
        >>> code_text(Attempt(run="a", attempt=1, started_at=began, git_commit="3f2a9c1d0e", git_dirty=True))
        '3f2a9c1+'
    """
    if attempt.git_commit is None:
        return ""
    return f"{printable(attempt.git_commit)[:7]}{'+' if attempt.git_dirty else ''}"


def reason_text(attempt: Attempt) -> str:
    """Return how an attempt ended, in one short line; what has no end yet is running.

    Example:
        >>> began = datetime.now(UTC)
        >>> reason_text(Attempt(run="a", attempt=1, started_at=began, ended_at=began, reason="oom", signal="SIGKILL"))
        'out of memory (SIGKILL)'
    """
    if attempt.reason is None:
        return "running"
    words = {"oom": "out of memory", "disk_full": "disk full", "nan": "loss was not finite"}
    found = words.get(attempt.reason, attempt.reason)
    kind, message = attempt.detail.get("type"), str(attempt.detail.get("message", ""))
    if attempt.reason == "exception" and kind is not None:
        text = printable(f"{kind}: {message}" if message else str(kind))
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    signal = attempt.signal or attempt.detail.get("signal")
    return f"{found} ({printable(str(signal))})" if signal else found
