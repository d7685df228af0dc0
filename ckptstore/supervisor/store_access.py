"""Reads the store of a supervised command, and records in it how starts ended, each time in a child process.

So the supervisor itself never loads SQLAlchemy: it stays small for weeks, and no damaged store can end it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CheckpointStoreError, StoreNotFoundError
from ckptstore.records import Attempt, Checkpoint, EndReason
from ckptstore.storage.heartbeat_file import read_heartbeat
from ckptstore.storage.layout import Layout, find_store
from ckptstore.supervisor.end_reasons import reason_of, signal_name
from ckptstore.supervisor.forked_call import call_in_child

if TYPE_CHECKING:
    from ckptstore.manifest.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """Where a store stands.

    Attributes:
        newest: The newest version, 0 where there is none, None where the store cannot be read.
        resume_point: Where the next start would resume, or None.
        complaint: Why it cannot be read or written, or None.
    """

    newest: int | None = 0
    resume_point: Checkpoint | None = None
    complaint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts:
    """The store's own account of a start that has ended.

    Attributes:
        state: Where the store stands now.
        attempt: The last attempt of the start, or None if it reached no fit.
    """

    state: StoreState
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEnd:
    """How a start of the command ended, as far as its supervisor knows.

    Attributes:
        token: The name of the start, which its attempts have recorded.
        exit_code: Its exit code, negative for the signal that killed it; None where nobody was told.
        reason: The reason that the supervisor knows better than the training: ``"hang"``, ``"oom"``, ``"killed"``; or
            None.
        detail: What is known beyond that.
        output: The last lines of its output.
        log: Its log, or None.
    """

    token: str
    exit_code: int | None
    reason: EndReason | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    output: tuple[str, ...] = ()
    log: str | None = None

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it, or None."""
        return None if self.exit_code is None or self.exit_code >= 0 else signal_name(-self.exit_code)

    def to_json(self) -> dict[str, Any]:
        """Return it as the detail of an event."""
        return {
            "start": self.token,
            "exit_code": None if self.signal else self.exit_code,
            "signal": self.signal,
            "reason": self.reason,
            "log": self.log,
            "output": list(self.output),
            **self.detail,
        }


def look(path: Path, run: str | None) -> StoreState:
    """Return where a store stands; there may be none.

    Raises:
        NotAStoreError: The path is a file, or its manifest is another program's.
    """
    return call_in_child(partial(_look, path, run), _unreadable)


def count_saved(path: Path, run: str | None, after: int) -> int:
    """Return how many checkpoints were saved behind a version, including those that retention removed."""
    return call_in_child(partial(_count_saved, path, run, after), lambda complaint: 0)


def record_end(path: Path, run: str | None, end: StartEnd) -> EndFacts:
    """Record how a start ended: in its attempts, or as an event if it has reached no fit; returns what is known of it.

    Where there is no store, nothing is recorded.
    """
    return call_in_child(
        partial(_record_end, path, run, end), lambda complaint: EndFacts(state=_unreadable(complaint))
    )


def record_event(path: Path, kind: str, run: str | None, detail: Mapping[str, Any]) -> str | None:
    """Record an event; returns why that could not be done, or None. Where there is no store, nothing is recorded."""
    return call_in_child(partial(_record_event, path, kind, run, detail), str)


# --- in the child --------------------------------------------------------------------------------


def _unreadable(complaint: str) -> StoreState:
    return StoreState(newest=None, complaint=complaint)


def _look(path: Path, run: str | None) -> StoreState:
    from ckptstore.store.store import CheckpointStore

    try:
        with CheckpointStore(find_store(path), read_only=True) as store:
            latest = store.latest(run)
            point = store.resume_point(run)
    except StoreNotFoundError:
        return StoreState()
    return StoreState(newest=0 if latest is None else latest.version, resume_point=point)


def _count_saved(path: Path, run: str | None, after: int) -> int:
    from ckptstore.store.store import CheckpointStore

    with CheckpointStore(find_store(path), read_only=True) as store:
        events = [event for kind in ("saved", "adopted") for event in store.events(kind=kind, run=run)]
    return len({event.version for event in events if (event.version or 0) > after})


def _record_end(path: Path, run: str | None, end: StartEnd) -> EndFacts:
    try:
        layout = Layout(find_store(path))
    except StoreNotFoundError:
        return EndFacts(state=StoreState())
    complaint, attempt = None, None
    try:
        attempt = _record(layout, run, end)
    except CheckpointStoreError as error:
        complaint = str(error)
    try:
        state = _look(path, run)
    except CheckpointStoreError as error:
        state = _unreadable(str(error))
    return EndFacts(state=replace(state, complaint=state.complaint or complaint), attempt=attempt)


def _record(layout: Layout, run: str | None, end: StartEnd) -> Attempt | None:
    """Record an end, and return the last attempt of the start as it is recorded now; None if it has none."""
    from ckptstore.commit.open import open_for_writing

    manifest = open_for_writing(layout, create=False)
    try:
        attempts = [found for found in manifest.attempts.of_run() if found.detail.get("start") == end.token]
        if not attempts:
            manifest.events.add("start_ended", run=run, detail=end.to_json())
            return None
        for attempt in attempts:
            if attempt.reason is None or attempt is attempts[-1]:
                _end(layout, manifest, attempt, end)
        return manifest.attempts.last(attempts[-1].run)
    finally:
        manifest.close()


def _was_in_fit(layout: Layout, attempt: Attempt) -> bool:
    """Return True if the heartbeat of an attempt that is dead tells of no end of its fit."""
    from ckptstore.store.attempts.evidence import is_of

    beat = read_heartbeat(layout.heartbeats / attempt.run)
    return beat is not None and is_of(beat, attempt) and beat.phase != "ended"


def _end(layout: Layout, manifest: Manifest, attempt: Attempt, end: StartEnd) -> None:
    code = end.exit_code
    in_fit = attempt.reason is None and _was_in_fit(layout, attempt)
    reason = reason_of(-1 if code is None else code, end.reason, attempt, end.output, in_fit=in_fit)
    manifest.attempts.end(
        attempt.run,
        attempt.attempt,
        reason=reason,
        exit_code=None if code is None or code < 0 else code,
        signal=end.signal,
        detail={**end.detail, "output": list(end.output)},
        # A training that is asked to end since it hangs may still find time to record that it was interrupted.
        overwrite=attempt.reason != "finished" and end.reason in ("hang", "oom"),
    )


def _record_event(path: Path, kind: str, run: str | None, detail: Mapping[str, Any]) -> str | None:
    from ckptstore.commit.open import open_for_writing

    try:
        manifest = open_for_writing(Layout(find_store(path)), create=False)
    except StoreNotFoundError:
        return None
    try:
        # Which attempt was the last: a clock may be set back between two records.
        last = manifest.attempts.last(run) if run is not None else None
        known = {**detail, "attempt": 0 if last is None else last.attempt} if run is not None else detail
        manifest.events.add(kind, run=run, detail=known)
    finally:
        manifest.close()
    return None
