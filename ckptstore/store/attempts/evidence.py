"""How an attempt probably ended that has not recorded its end: it was killed, and left a heartbeat and counters."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Attempt, AttemptEnd, Beat, EndReason, OpenAttempt
from ckptstore.storage.heartbeat_file import is_held, read_heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.system.oom_kills import oom_counters
from ckptstore.system.processes import boot_id, clock_s

_OF_MACHINE = "/proc/vmstat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine, as far as it tells how a process of it ended.

    Attributes:
        host: Its name.
        boot_id: Id of its boot, or None.
        clock_s: Seconds since that.
        now: Its time, UTC.
        oom_kills: Kills for want of memory in this process' cgroup so far; None where that is not counted.
    """

    host: str
    boot_id: str | None
    clock_s: float
    now: datetime
    oom_kills: int | None

    @classmethod
    def here(cls) -> Machine:
        """Return this machine, now."""
        return cls(
            host=socket.gethostname(),
            boot_id=boot_id(),
            clock_s=clock_s(),
            now=datetime.now(UTC),
            oom_kills=oom_kills(),
        )


def oom_kills() -> int | None:
    """Return how often the kernel has killed a process for want of memory in this process' cgroup, or on this machine.

    None where neither is counted.
    """
    counters = oom_counters()
    of_group = [count for file, count in counters.items() if file != _OF_MACHINE]
    return max(of_group) if of_group else counters.get(_OF_MACHINE)


def end_by_evidence(
    found: OpenAttempt, beat: Beat | None, last_saved_at: datetime | None, machine: Machine
) -> AttemptEnd:
    """Return the probable end of an attempt whose process is dead.

    Args:
        found: The attempt.
        beat: What its run's heartbeat says, or None; it may be another attempt's.
        last_saved_at: When its run saved last, or None.
        machine: This machine.
    """
    attempt = found.attempt
    if beat is not None and not is_of(beat, attempt):
        beat = None
    detail: dict[str, Any] = {}
    if beat is not None:
        detail |= {"phase": beat.phase, "epoch": beat.epoch, "batch": beat.batch, "step": beat.step}
    reason: EndReason = "killed"
    if beat is not None and beat.phase == "ended":
        reason = "unknown"  # it came to its end, and could not record it
    elif attempt.host == machine.host and found.boot_id is not None and machine.boot_id is not None:
        if found.boot_id != machine.boot_id:
            detail["machine"] = "was restarted"
        elif None not in (found.oom_kills, machine.oom_kills) and machine.oom_kills > found.oom_kills:  # type: ignore[operator]
            reason = "oom"
    moments = [attempt.started_at, last_saved_at, None if beat is None else _time_of(beat, machine)]
    ended_at = max(moment for moment in moments if moment is not None)
    # A clock that was set back makes no attempt end before it began.
    ended_at = max(attempt.started_at, min(ended_at, machine.now))
    return AttemptEnd(reason=reason, ended_at=ended_at, detail=detail)


def is_of(beat: Beat, attempt: Attempt) -> bool:
    """Return True if a heartbeat is an attempt's: one without a number is known by the process."""
    if beat.attempt:
        return beat.attempt == attempt.attempt
    return (beat.pid, beat.host) == (attempt.pid, attempt.host)


def _time_of(beat: Beat, machine: Machine) -> datetime | None:
    if beat.boot_id is not None and beat.boot_id == machine.boot_id:
        return machine.now - timedelta(seconds=max(0.0, machine.clock_s - beat.at_s))
    try:
        written = datetime.fromisoformat(beat.written_at)
    except ValueError:
        return None
    return written.astimezone(UTC) if written.tzinfo is not None else None


def ends_by_evidence(layout: Layout, manifest: Manifest, run: str) -> dict[int, AttemptEnd]:
    """Return the probable ends of a run's attempts that have recorded none; the caller knows that they are dead.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        run: The run.
    """
    found = manifest.attempts.open_attempts(run)
    if not found:
        return {}
    beat, machine = read_heartbeat(layout.heartbeats / run), Machine.here()
    latest = manifest.checkpoints.latest(run)
    saved_at = None if latest is None else latest.created_at
    ends = {}
    for place, attempt in enumerate(found):
        is_last = place == len(found) - 1
        ends[attempt.attempt.attempt] = end_by_evidence(attempt, beat, saved_at if is_last else None, machine)
    return ends


def with_probable_ends(manifest: Manifest, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return attempts with the probable ends of those that are dead and have recorded none; changes nothing.

    An attempt counts as dead if it has left a heartbeat whose lock nobody holds. One without a heartbeat is left open,
    and one that has come to its end and is about to record it.
    """
    layout = Layout(manifest.path.parent)
    return [
        attempt if attempt.reason is not None else _with_probable_end(layout, manifest, attempt)
        for attempt in attempts
    ]


def _with_probable_end(layout: Layout, manifest: Manifest, attempt: Attempt) -> Attempt:
    path = layout.heartbeats / attempt.run
    beat = read_heartbeat(path)
    if beat is None or beat.phase == "ended" or not is_of(beat, attempt) or is_held(path):
        return attempt
    end = ends_by_evidence(layout, manifest, attempt.run).get(attempt.attempt)
    if end is None:
        return attempt
    detail = {**attempt.detail, **end.detail}
    return replace(attempt, reason=end.reason, ended_at=end.ended_at, detail=detail)
