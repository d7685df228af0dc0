"""Restarts a training until it has ended well, as long as new checkpoints in its store show progress."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.cli.child import SupervisedChild
from ckptstore.errors import CheckpointStoreError, NotAStoreError, StoreNotFoundError
from ckptstore.records import Checkpoint
from ckptstore.report import text
from ckptstore.storage.layout import absolute, find_store
from ckptstore.system.stop_signals import TRY_AGAIN

_MAX_PAUSE_S = 60.0
_STOPPED_BY = (-signal.SIGTERM, -signal.SIGUSR1)
_STOPPED = "not restarted: a signal asked to stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the restarts of `supervise`.

    Attributes:
        restarts: Maximal number of restarts; None for as many as there is progress for.
        without_progress: Maximal number of starts in a row without a new checkpoint.
        pause_s: Seconds before a restart without progress; doubled for each further one, up to a minute.
        grace_s: Seconds that the command has after a second signal before it is killed.
    """

    restarts: int | None = None
    without_progress: int = 5
    pause_s: float = 1.0
    grace_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedOutcome:
    """How a supervised command ended.

    Attributes:
        exit_code: Its last exit code; 128 + N where signal N killed it.
        restarts: Starts after the first.
        checkpoints: How many checkpoints were saved meanwhile.
        resume_point: Where the next start would resume, or None.
    """

    exit_code: int
    restarts: int
    checkpoints: int
    resume_point: Checkpoint | None

    def to_json(self) -> dict[str, Any]:
        """Return it as the JSON object of the command line."""
        point = self.resume_point
        return {
            "exit_code": self.exit_code,
            "restarts": self.restarts,
            "checkpoints": self.checkpoints,
            "resume_point": None if point is None else point.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoreState:
    """The newest version of a store, 0 where it has none, None where it cannot be read; and its resume point."""

    newest: int | None
    resume_point: Checkpoint | None = None


class _Progress:
    """Progress of the command, seen by the checkpoints in its store; there may be no store yet."""

    def __init__(self, path: Path, run: str | None, log: Callable[[str], object]) -> None:
        self._path, self._run, self._log = path, run, log
        self._newest = self._first = self._look().newest

    def check(self) -> tuple[bool, Checkpoint | None]:
        """Return whether there is a new checkpoint since the last check, and the resume point."""
        state, before = self._look(), self._newest
        if state.newest is None:
            return False, state.resume_point
        self._newest = max(state.newest, before or 0)
        if self._first is None:
            self._first = self._newest
        return before is not None and self._newest > before, state.resume_point

    def saved(self) -> int:
        """Return how many checkpoints were saved since the beginning, including those that retention removed."""
        from ckptstore.store.store import CheckpointStore

        if not self._newest:
            return 0
        try:
            with CheckpointStore(find_store(self._path), read_only=True) as store:
                events = [
                    event for kind in ("saved", "adopted") for event in store.events(kind=kind, run=self._run)
                ]
        except CheckpointStoreError as error:
            self._log(f"the store cannot be read: {error}")
            return 0
        return len({event.version for event in events if (event.version or 0) > (self._first or 0)})

    def _look(self) -> _StoreState:
        from ckptstore.store.store import CheckpointStore

        try:
            with CheckpointStore(find_store(self._path), read_only=True) as store:
                latest = store.latest(self._run)
                point = store.resume_point(self._run)
        except StoreNotFoundError:
            return _StoreState(newest=0)
        except NotAStoreError:
            raise
        except CheckpointStoreError as error:
            self._log(f"the store cannot be read: {error}")
            return _StoreState(newest=None)
        return _StoreState(newest=0 if latest is None else latest.version, resume_point=point)


def supervise(
    path: Path,
    command: Sequence[str],
    limits: Limits,
    *,
    log: Callable[[str], object],
    run: str | None = None,
    stdout: int | None = None,
) -> SupervisedOutcome:
    """Run a command, and restart it after each crash, until it ends well or a restart makes no sense.

    It is restarted when it ends with exit code 75 or by a signal; after another failure only if it has saved a
    checkpoint, since otherwise it would fail again. SIGTERM, SIGUSR1 and SIGINT to this process are passed on, and
    there is no restart then.

    Args:
        path: The store that the command writes to; there may be none yet.
        command: Program and arguments.
        limits: When to give up.
        log: Called with each message about restarts.
        run: The run whose checkpoints count as progress; None for all.
        stdout: A file descriptor for the command's output; None for this process's own.

    Raises:
        NotAStoreError: The path is a file, lies below one, or is another program's database; nothing was started.
        OSError: The command cannot be started.
    """
    _check_no_file_in_the_way(path)
    progress = _Progress(path, run, log)
    restarts = idle_starts = 0
    with SupervisedChild(grace_s=limits.grace_s, stdout=stdout) as child:
        while True:
            code = child.run(command)
            progressed, point = progress.check()
            idle_starts = 0 if progressed else idle_starts + 1
            if code == 0:
                break
            stopped = child.stop_requested
            if stopped and code in _STOPPED_BY:
                # The job got the signal twice, directly and through us; the second came while it was ending.
                code = TRY_AGAIN
            refusal = _STOPPED if stopped else _refusal(code, progressed, restarts, idle_starts, limits)
            if refusal is not None:
                log(f"{_how_it_ended(code)}; {refusal}")
                break
            pause_s = min(limits.pause_s * 2 ** (idle_starts - 1), _MAX_PAUSE_S) if idle_starts else 0.0
            restarts += 1
            when = f", in {pause_s:g} s," if pause_s else ""
            log(f"{_how_it_ended(code)}; start {restarts + 1}{when} {_where_it_begins(point)}")
            if not child.pause(pause_s):
                log(_STOPPED)
                restarts -= 1
                code = TRY_AGAIN
                break
    return SupervisedOutcome(
        exit_code=code if code >= 0 else 128 - code,
        restarts=restarts,
        checkpoints=progress.saved(),
        resume_point=point,
    )


def _check_no_file_in_the_way(path: Path) -> None:
    store = absolute(path)
    for above in (store, *store.parents):
        if above.exists() and not above.is_dir():
            raise NotAStoreError(path=above, reason="it is a file, not a directory")


def _refusal(code: int, progressed: bool, restarts: int, idle_starts: int, limits: Limits) -> str | None:
    """Return why a command that failed is not restarted; None where it is."""
    if code > 0 and code != TRY_AGAIN and not progressed:
        return "not restarted: it has saved no checkpoint since its start, and would fail again"
    if idle_starts >= limits.without_progress:
        return f"not restarted: {idle_starts} starts in a row without a new checkpoint"
    if limits.restarts is not None and restarts >= limits.restarts:
        return f"not restarted: {restarts} restarts are the limit"
    return None


def _how_it_ended(code: int) -> str:
    if code == TRY_AGAIN:
        return f"the command was interrupted (exit code {code})"
    if code >= 0:
        return f"the command ended with exit code {code}"
    try:
        return f"the command was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the command was killed by signal {-code}"


def _where_it_begins(point: Checkpoint | None) -> str:
    if point is None:
        return "begins from scratch: there is no resume point yet"
    age = text.age_text((datetime.now(UTC) - point.created_at).total_seconds())
    return f"resumes from version {point.version}: {text.position_text(point)}, {age} old"
