"""Finds the logs that a store has: those of attempts, and those of starts that reached no fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.errors import CheckpointStoreError
from ckptstore.storage import log_files
from ckptstore.storage.layout import Layout
from ckptstore.supervisor.start_logs import STARTS, logs_without_fit
from ckptstore.supervisor.waiting_directory import layout_of


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLog:
    """A log that is kept.

    Attributes:
        run: The run; None for a start that reached no fit.
        attempt: Number of the attempt; None for a start that reached no fit.
        path: The live file; its compressed parts lie beside it.
        nbytes: Bytes that it takes on the disk, parts included.
        written_at: When something was last written to it; aware, UTC.
    """

    run: str | None
    attempt: int | None
    path: Path
    nbytes: int
    written_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return it as the JSON object of the command line."""
        return {
            "run": self.run,
            "attempt": self.attempt,
            "path": str(self.path),
            "nbytes": self.nbytes,
            "written_at": self.written_at.isoformat(),
        }

    @property
    def title(self) -> str:
        """A name for people."""
        if self.attempt is None:
            return f"a start that reached no fit: {self.path.stem}"
        return f"run {self.run}, attempt {self.attempt}"


def kept_logs(path: Path, run: str | None = None) -> list[KeptLog]:
    """Return the logs that are kept, in the order in which they were last written; there may be no store yet.

    Args:
        path: The store, or the place where it will be.
        run: Only logs of this run's attempts; None for all, and those of starts that reached no fit.
    """
    found = [] if run is not None else [_kept(None, None, log) for log in logs_without_fit(path)]
    layout = layout_of(path)
    if layout is not None:
        found += [_kept(*which, log) for which, log in _logs_of_attempts(layout, run).items()]
    return sorted((log for log in found if log is not None), key=lambda log: log.written_at)


def _logs_of_attempts(layout: Layout, run: str | None) -> dict[tuple[str, int], Path]:
    """Return the logs of attempts by run and number: as recorded, and by their names if the store cannot be read."""
    found = dict(_by_name(layout))
    with suppress(CheckpointStoreError):
        from ckptstore.store.store import CheckpointStore

        with CheckpointStore(layout.root, read_only=True) as store:
            # Several fits of one process share a log, and one on another disk stays there.
            recorded = {(one.run, one.attempt): one.log for one in store.attempts(run) if one.log is not None}
        found |= recorded
    return {which: log for which, log in found.items() if run in (None, which[0])}


def _by_name(layout: Layout) -> Iterator[tuple[tuple[str, int], Path]]:
    for log in layout.logs.glob("*/*.log"):
        if log.parent.name != STARTS and log.stem.isdecimal():
            yield (log.parent.name, int(log.stem)), log


def _kept(run: str | None, attempt: int | None, log: Path) -> KeptLog | None:
    try:
        status = log.stat()
        nbytes = 512 * (
            status.st_blocks + sum(part.path.stat().st_blocks for part in log_files.parts_of(log))
        )
    except OSError:
        return None  # removed to keep within the limit
    return KeptLog(
        run=run,
        attempt=attempt,
        path=log,
        nbytes=nbytes,
        written_at=datetime.fromtimestamp(status.st_mtime, UTC),
    )
