"""States of runs: a pure function of held locks, the heartbeat, and what the manifest recorded last."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.records import Attempt, Beat, RunOverview, RunState
from ckptstore.system.processes import ProcessState

_FAILURES = ("exception", "disk_full", "nan")
_STILL_THERE = {
    "stopped": "its process is stopped by a signal: kill -CONT {pid} continues it",
    "traced": "a debugger or tracer is attached to its process",
}
_DOING = {
    "starting": "starting: its first batch has not ended yet",
    "validating": "validating",
    "saving": "waits for a save",
    "paused": "between two epochs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Signs of life of a run.

    Attributes:
        is_held: True if a training holds the lock of its heartbeat: its process is alive.
        is_saving: True if a process that saves for it is alive.
        beat: Its heartbeat, or None.
        silence_s: Seconds since the heartbeat; None where its clock is another machine's.
        process: How the training's process is doing; ``"unknown"`` on another machine.
    """

    is_held: bool
    is_saving: bool = False
    beat: Beat | None = None
    silence_s: float | None = None
    process: ProcessState = "unknown"


def state_of(signs: Signs, overview: RunOverview) -> tuple[RunState, str]:
    """Return the state of a run, and a word more on it, as `Run.note` has it."""
    if signs.is_held:
        return _of_living(signs)
    attempt = overview.last_attempt
    # After an error the process may live on, and with it one that has nothing left to save.
    if signs.is_saving and (attempt is None or attempt.reason not in _FAILURES):
        return "saving", "its training has ended; its last save has not"
    return _of_ended(overview)


def _of_living(signs: Signs) -> tuple[RunState, str]:
    beat = signs.beat
    if beat is None:
        return "running", ""
    state: RunState = "saving" if beat.phase == "saving" else "running"
    if signs.process in _STILL_THERE:
        return state, _STILL_THERE[signs.process].format(pid=beat.pid)
    silence_s = signs.silence_s
    if silence_s is not None and silence_s > beat.hang_limit_s():
        minutes = round(silence_s / 60)
        return "hung", f"no sign of life for {minutes} min, in the phase {beat.phase!r}"
    return state, _DOING.get(beat.phase, "")


def _of_ended(overview: RunOverview) -> tuple[RunState, str]:
    attempt = overview.last_attempt
    if _is_stopped(overview):
        reason = overview.stop.get("reason")
        return "stopped", reason if isinstance(reason, str) else ""
    if attempt is not None and attempt.reason in _FAILURES:
        return "failed", _failure(attempt)
    if overview.is_finished or (attempt is not None and attempt.reason == "finished"):
        return "finished", ""
    return "interrupted", "" if attempt is None or attempt.reason is None else attempt.reason


def _is_stopped(overview: RunOverview) -> bool:
    attempt = overview.last_attempt
    if attempt is None or overview.stopped_at is None:
        return overview.stopped_at is not None
    last = overview.stop.get("attempt")
    # Numbers come first: a clock may have been set back between the two records.
    return attempt.attempt <= last if isinstance(last, int) else attempt.started_at <= overview.stopped_at


def _failure(attempt: Attempt) -> str:
    kind, message = attempt.detail.get("type"), attempt.detail.get("message")
    return f"{kind}: {message}" if kind and message else str(kind or attempt.reason)
