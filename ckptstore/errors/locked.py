"""Errors of locks that another process or save holds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from ckptstore.errors.base import CheckpointStoreError


class LockedError(CheckpointStoreError, TimeoutError):
    """Another process or save holds a lock that is needed."""


class StoreLockedError(LockedError):
    """The store's commit lock did not become free in time."""

    path: Path
    waited_s: float

    def __init__(self, *, path: Path, waited_s: float) -> None:
        super().__init__(
            f"{path}: another process has held the store's lock for over {waited_s:g} s",
            hint=f"find out who has it open: lsof {path}",
            path=path,
            waited_s=waited_s,
        )


class SaveInProgressError(LockedError):
    """A save was started inside a save of the same thread, as from a signal handler."""

    store: Path

    def __init__(self, *, store: Path) -> None:
        super().__init__(
            f"{store}: save was called while this thread is already saving",
            hint="in a signal handler set a flag, and save at the end of the next batch",
            store=store,
        )


class RunLockedError(LockedError):
    """Another writer owns this run; `host`, `pid` and `started_at` identify it (None where unknown)."""

    run: str
    store: Path
    host: str | None
    pid: int | None
    started_at: datetime | None

    _problem = "is being written by {writer}"
    _hint = "wait for it to end, or give each fit that writes at once a name: run='...'"

    def __init__(
        self,
        *,
        run: str,
        store: Path,
        host: str | None = None,
        pid: int | None = None,
        started_at: datetime | None = None,
    ) -> None:
        problem = self._problem.format(writer=_writer(host, pid, started_at))
        super().__init__(
            f"{store}: run {run!r} {problem}",
            hint=self._hint,
            run=run,
            store=store,
            host=host,
            pid=pid,
            started_at=started_at,
        )


class RunTakenOverError(RunLockedError):
    """Another process became the writer of this run while this one was writing it; nothing was changed.

    That needs locks that do not work, or a lock file that was removed. What this process saved before stays.
    """

    _problem = "was taken over by {writer}: this process may no longer save to it"
    _hint = "keep one of the two trainings; never remove a store's locks directory while one is running"


class SupervisorRunningError(LockedError):
    """Another ``ckptstore run`` supervises this run, or its command still runs where it cannot be waited for.

    `host` and `pid` identify the process, and are None where unknown; `run` is None for a store's unnamed run.
    """

    store: Path
    run: str | None
    host: str | None
    pid: int | None

    def __init__(
        self, *, store: Path, run: str | None, host: str | None = None, pid: int | None = None
    ) -> None:
        what = "the store" if run is None else f"run {run!r}"
        super().__init__(
            f"{store}: {what} is supervised by {_writer(host, pid, None)}; nothing was started",
            hint=f"follow it: ckptstore logs -f {store}; or supervise another run of this store: --run NAME",
            store=store,
            run=run,
            host=host,
            pid=pid,
        )


def _writer(host: str | None, pid: int | None, started_at: datetime | None) -> str:
    since = f" since {started_at.isoformat(timespec='seconds')}" if started_at else ""
    return f"process {pid} on {host}{since}" if pid is not None else "another process"
