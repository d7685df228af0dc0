"""Concludes how a start ended from what was seen of it and from what its training has recorded. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from ckptstore.records import Attempt, EndReason
from ckptstore.supervisor.policy import End
from ckptstore.system.stop_signals import TRY_AGAIN

_EXIT_CODES: dict[EndReason, int] = {"finished": 0, "preempted": TRY_AGAIN, "interrupted": TRY_AGAIN}
_FAILURES = ("exception", "disk_full", "nan")
_KILLED = -9
# ENOSPC and EDQUOT, as Python prints them.
_DISK_FULL = ("[Errno 28]", "[Errno 122]")
_IN_WORDS: dict[EndReason, str] = {
    "oom": "out of memory",
    "hang": "it hung",
    "disk_full": "the disk is full",
    "nan": "a metric was not a number",
}


def exit_code_of(seen: int | None, attempt: Attempt | None) -> int:
    """Return a command's exit code, or, where the system did not tell it, what its last attempt lets conclude."""
    if seen is not None:
        return seen
    reason = None if attempt is None else attempt.reason
    return 1 if reason in _FAILURES else _EXIT_CODES.get(reason or "killed", _KILLED)


def reason_of(
    code: int,
    known: EndReason | None,
    attempt: Attempt | None,
    output: Sequence[str],
    *,
    in_fit: bool = False,
) -> EndReason:
    """Return the probable reason of an end.

    Args:
        code: The exit code, negative for the signal that killed it.
        known: The reason that the supervisor knows for sure, or None.
        attempt: The last attempt, or None if it reached no fit.
        output: The last lines of output.
        in_fit: True if the attempt was in the middle of its fit, by its heartbeat.
    """
    if known is not None:
        return known
    if code < 0:
        return "killed"
    if code == TRY_AGAIN:
        return "preempted"
    if code == 0:
        # A script may end well though its fit has not: it has caught what ended that, or called `os._exit`.
        recorded = None if attempt is None else attempt.reason
        return recorded or ("unknown" if in_fit else "finished")
    if attempt is not None and attempt.reason in _FAILURES:
        return attempt.reason
    return "disk_full" if any(mark in line for line in output for mark in _DISK_FULL) else "exception"


def exception_of(code: int, attempt: Attempt | None, output: Sequence[str]) -> str | None:
    """Return a text that tells the exception that ended a start from others; None if none is known.

    Example:
        >>> exception_of(1, None, ["Traceback (most recent call last):", "  ...", "ValueError: no data"])
        'ValueError: no data'
    """
    if code <= 0 or code == TRY_AGAIN:
        return None
    detail: Any = {} if attempt is None or attempt.reason not in _FAILURES else attempt.detail
    detail = detail.get("exception", detail)
    if isinstance(detail, dict) and "type" in detail:
        frames = detail.get("frames") or [""]
        return f"{detail['type']}: {detail.get('message', '')} {frames[-1]}".rstrip()[:500]
    has_traceback = any(line.startswith("Traceback (most recent call last)") for line in output)
    return output[-1] if output and (has_traceback or "Error" in output[-1]) else None


def end_of(
    code: int,
    known: EndReason | None,
    attempt: Attempt | None,
    output: Sequence[str],
    *,
    progressed: bool,
    stop_requested: bool,
    step: int | None,
    at_s: float,
) -> End:
    """Return how a start ended, for the policy; arguments as for `reason_of` and `End`."""
    return End(
        exit_code=code,
        reason=reason_of(code, known, attempt, output),
        progressed=progressed,
        stop_requested=stop_requested,
        exception=exception_of(code, attempt, output),
        step=step,
        at_s=at_s,
    )


def in_words(code: int, reason: EndReason) -> str:
    """Return how a command ended, as a clause.

    Example:
        >>> in_words(-9, "oom")
        'the command was killed by SIGKILL (out of memory)'
    """
    if code == TRY_AGAIN:
        return f"the command was interrupted (exit code {code})"
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    why = f" ({_IN_WORDS[reason]})" if reason in _IN_WORDS else ""
    return f"the command {how}{why}"


def unfinished(reason: EndReason, attempt: Attempt | None) -> str:
    """Return what is to be said of a command that ended with 0 though its training is not finished, as a clause.

    Example:
        >>> unfinished("unknown", None)
        'the training is not finished: the process ended in the middle of its fit'
    """
    detail: Any = {} if attempt is None else attempt.detail
    why = _IN_WORDS.get(reason, reason)
    if reason == "unknown":
        why = "the process ended in the middle of its fit"
    elif "type" in detail:
        why = f"its fit was ended by {detail['type']}: {detail.get('message', '')}"[:300]
    return f"the training is not finished: {why}"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``"SIGKILL"``.

    Example:
        >>> signal_name(9), signal_name(63)
        ('SIGKILL', 'signal 63')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
