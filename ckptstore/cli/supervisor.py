"""Starts a training again until it has ended well; whether it is worth it, the store tells: by new checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.cli.child import Supervised
from ckptstore.errors import CheckpointStoreError, NotAStoreError, StoreNotFoundError
from ckptstore.records import Checkpoint
from ckptstore.report import text
from ckptstore.storage.layout import Layout, absolute, find_store
from ckptstore.system.stop_signals import TRY_AGAIN

_LONGEST_PAUSE_S = 60.0
_STOPPED_BY = (-signal.SIGTERM, -signal.SIGUSR1)
_STOPPED = "not started again: a signal asked to stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long `supervise` goes on.

    Attributes:
        restarts: Starts after the first, at most; None for as many as there is progress for.
        without_progress: Starts in a row without a new checkpoint, at most.
        pause_s: Seconds before a restart without progress; doubled for each further one, up to a minute.
        grace_s: Seconds that the command has after a second signal before it is killed.
    """

    restarts: int | None = None
    without_progress: int = 5
    pause_s: float = 1.0
    grace_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended.

    Attributes:
        exit_code: The command's last one; 128 + N where signal N killed it.
        restarts: Starts after the first.
        checkpoints: How many checkpoints were saved meanwhile.
        resume_point: Where the next start would go on, or None.
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
class _View:
    """What a store shows: its newest version, 0 where there is none, None where that cannot be read."""

    newest: int | None
    resume_point: Checkpoint | None = None


class _Store:
    """The store that the command writes to, looked at from outside; there may be none yet."""

    def __init__(self, path: Path, run: str | None, say: Callable[[str], object]) -> None:
        self._path, self._run, self._say = path, run, say
        self.newest = self.first = self._look().newest

    def look(self) -> tuple[bool, Checkpoint | None]:
        """Return whether there is a new checkpoint since the last look, and the resume point."""
        view, before = self._look(), self.newest
        if view.newest is None:
            return False, view.resume_point
        self.newest = max(view.newest, before or 0)
        if self.first is None:
            self.first = self.newest
        return before is not None and self.newest > before, view.resume_point

    def saved(self) -> int:
        """Return how many checkpoints were saved since the beginning, those that retention removed among them."""
        from ckptstore.commit.open import open_for_reading

        if not self.newest:
            return 0
        try:
            manifest = open_for_reading(Layout(find_store(self._path)))
        except CheckpointStoreError as error:
            self._say(f"the store cannot be read: {error}")
            return 0
        try:
            events = [
                one for kind in ("saved", "adopted") for one in manifest.events(kind=kind, run=self._run)
            ]
        finally:
            manifest.close()
        return len({event.version for event in events if (event.version or 0) > (self.first or 0)})

    def _look(self) -> _View:
        from ckptstore.store.store import CheckpointStore

        try:
            with CheckpointStore(find_store(self._path), read_only=True) as store:
                latest = store.latest(self._run)
                point = store.resume_point(self._run)
        except StoreNotFoundError:
            return _View(newest=0)
        except NotAStoreError:
            raise
        except CheckpointStoreError as error:
            self._say(f"the store cannot be read: {error}")
            return _View(newest=None)
        return _View(newest=0 if latest is None else latest.version, resume_point=point)


def supervise(
    path: Path,
    command: Sequence[str],
    limits: Limits,
    *,
    say: Callable[[str], object],
    run: str | None = None,
    stdout: int | None = None,
) -> Outcome:
    """Run a command, and again after each crash, until it ends well or restarting makes no sense.

    It is started again when it ends with exit code 75 or by a signal; after another failure only if it has saved a
    checkpoint, since else the failure would come again. SIGTERM, SIGUSR1 and SIGINT to this process are passed on, and
    there is no restart then.

    Args:
        path: The store that the command writes to; there may be none yet.
        command: Program and arguments.
        limits: How long to go on.
        say: Takes lines about restarts.
        run: The run whose checkpoints count as progress; None for all.
        stdout: A file descriptor for what the command prints; None for our own.

    Raises:
        NotAStoreError: The path is, or lies below, a file, or is somebody else's database; nothing was started.
        OSError: The command cannot be started.
    """
    _check_place(path)
    store = _Store(path, run, say)
    restarts = idle = 0
    with Supervised(grace_s=limits.grace_s, stdout=stdout) as supervised:
        while True:
            code = supervised.run(command)
            progress, point = store.look()
            idle = 0 if progress else idle + 1
            if code == 0:
                break
            stopped = supervised.asked_to_stop
            if stopped and code in _STOPPED_BY:
                # The signal came twice, to the job and through us, and the second met a process that was ending.
                code = TRY_AGAIN
            refusal = _STOPPED if stopped else _refusal(code, progress, restarts, idle, limits)
            if refusal is not None:
                say(f"{_ended(code)}; {refusal}")
                break
            pause_s = min(limits.pause_s * 2 ** (idle - 1), _LONGEST_PAUSE_S) if idle else 0.0
            restarts += 1
            say(f"{_ended(code)}; start {restarts + 1}{_when(pause_s)} goes on {_where(point)}")
            if not supervised.pause(pause_s):
                say(_STOPPED)
                restarts -= 1
                code = TRY_AGAIN
                break
    return Outcome(
        exit_code=code if code >= 0 else 128 - code,
        restarts=restarts,
        checkpoints=store.saved(),
        resume_point=point,
    )


def _check_place(path: Path) -> None:
    place = absolute(path)
    for above in (place, *place.parents):
        if above.exists() and not above.is_dir():
            raise NotAStoreError(path=above, reason="it is a file, not a directory")


def _refusal(code: int, progress: bool, restarts: int, idle: int, limits: Limits) -> str | None:
    """Return why a command that failed is not started again; None where it is."""
    if code > 0 and code != TRY_AGAIN and not progress:
        return "not started again: it has saved no checkpoint since its start, and would fail again"
    if idle >= limits.without_progress:
        return f"not started again: {idle} starts in a row without a new checkpoint"
    if limits.restarts is not None and restarts >= limits.restarts:
        return f"not started again: {restarts} restarts are the limit"
    return None


def _ended(code: int) -> str:
    if code == TRY_AGAIN:
        return f"the command was interrupted (exit code {code})"
    if code >= 0:
        return f"the command ended with exit code {code}"
    try:
        return f"the command was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the command was killed by signal {-code}"


def _when(pause_s: float) -> str:
    return f", in {pause_s:g} s," if pause_s else ""


def _where(point: Checkpoint | None) -> str:
    if point is None:
        return "from the beginning: there is no resume point yet"
    age = text.age_text((datetime.now(UTC) - point.created_at).total_seconds())
    return f"from version {point.version}: {text.position_text(point)}, {age} old"
