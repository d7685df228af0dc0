"""Facts about the processes of this machine that help to tell a dead, stopped or traced one from one that hangs.

They come from Linux' ``/proc``. Elsewhere, and of processes in another container, little or nothing is known, and the
functions say so. No lock rests on them.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Literal

# "gone": dead, or a zombie, or the pid is now another process's; "unknown": the system does not tell.
ProcessState = Literal["alive", "stopped", "traced", "gone", "unknown"]
# Places of fields in what `stat_fields` returns.
STATE, PARENT, SESSION, START_TICKS, EXIT_CODE = 0, 1, 3, 19, 49


def clock_s() -> float:
    """Return seconds since the machine was started, also those in which it was suspended; no system call on Linux.

    Elsewhere a clock that may stand still while the machine is suspended.
    """
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@cache
def boot_id() -> str | None:
    """Return the kernel's id of this start of the machine, or None where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def start_ticks(pid: int | None = None) -> int | None:
    """Return when a process, or this one, was started, in clock ticks since the machine was; None where unknown."""
    fields = stat_fields(os.getpid() if pid is None else pid)
    return None if fields is None else int(fields[START_TICKS])


def process_state(pid: int, started_ticks: int | None) -> ProcessState:
    """Return how a process of this machine is doing.

    Args:
        pid: Its id.
        started_ticks: What `start_ticks` returned for it, which tells it from a later process with that id; None if
            that is not known.

    Returns:
        ``"stopped"`` if a signal has stopped it, ``"traced"`` if a debugger or tracer is attached, ``"gone"`` if it is
        dead or another process has its id, ``"alive"`` otherwise; ``"unknown"`` without ``/proc``.

    Example:
        >>> process_state(os.getpid(), start_ticks()) in ("alive", "traced", "unknown")
        True
    """
    if not Path("/proc/self/stat").exists():
        return _state_by_signal(pid)
    fields = stat_fields(pid)
    if fields is None or fields[STATE] in "ZXx":
        return "gone"
    if started_ticks is not None and int(fields[START_TICKS]) != started_ticks:
        return "gone"
    if _is_traced(pid):
        return "traced"
    return "stopped" if fields[STATE] in "Tt" else "alive"


def _state_by_signal(pid: int) -> ProcessState:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except (OSError, OverflowError):
        return "unknown"  # it is there, and another user's
    return "unknown"  # its start is not known


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the state on; None if there is no such process, or no ``/proc``."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a name may contain blanks and brackets
    return fields if len(fields) > START_TICKS else None


def _is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return status.partition("TracerPid:")[2].split("\n", 1)[0].strip() not in ("", "0")
