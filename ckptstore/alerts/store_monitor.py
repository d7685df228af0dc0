"""Looks at the store of a supervised command now and then: for rollbacks, a disk that fills, and a metrics file."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ckptstore.alerts.alert import Alert
from ckptstore.errors import CheckpointStoreError
from ckptstore.records import Event, Observation
from ckptstore.report import prometheus
from ckptstore.report.text import age_text, size_text
from ckptstore.storage.output_files import replace_file
from ckptstore.store.observer import StoreObserver
from ckptstore.store.store import CheckpointStore

# A disk that is full within this time is low; of one that has been watched for less than half an hour only the second
# counts: a training that begins may write much, once.
_LOW_S, _VERY_LOW_S, _KNOWN_AFTER_S = 6 * 3600.0, 1800.0, 1800.0
# Room for fewer checkpoints than this is low, however slowly it fills.
_LEAST_CHECKPOINTS = 2
_MAX_EVENTS = 20


class StoreMonitor:
    """Looks at a store from outside; writes nothing to it, and takes none of its locks.

    Args:
        path: The store; there may be none yet.
        run: The only run to look at; None for all.
        metrics_file: Where to write metrics for Prometheus, or None.
        tell: Called with each alert.
        log: Called with a line about what cannot be done, once for each cause.
    """

    def __init__(
        self,
        path: Path,
        run: str | None,
        *,
        metrics_file: Path | None,
        tell: Callable[[Alert], object],
        log: Callable[[str], object],
    ) -> None:
        self._observer, self._run = StoreObserver(path, run=run), run
        self._metrics_file, self._tell, self._log = metrics_file, tell, log
        self._since = datetime.now(UTC)
        self._began_s = time.monotonic()
        self._said: set[str] = set()

    def look(self) -> None:
        """Look once; raises nothing."""
        try:
            seen = self._observer.look()
            self._write(seen)
            self._tell_of_disk(seen)
            if seen.problem is None:
                self._tell_of_rollbacks(seen.store)
        except (CheckpointStoreError, OSError) as error:
            self._complain(str(error))

    def _complain(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._log(f"ckptstore: {text}")

    def _write(self, seen: Observation) -> None:
        if self._metrics_file is not None:
            replace_file(self._metrics_file, prometheus.render(seen).encode())

    def _tell_of_disk(self, seen: Observation) -> None:
        disk = seen.disk
        if disk is None:
            return
        largest = max((one.run.latest.nbytes for one in seen.runs if one.run.latest is not None), default=0)
        text = low_disk(
            disk.free, disk.full_in_s, watched_s=time.monotonic() - self._began_s, largest=largest
        )
        if text is not None:
            detail = {"free": disk.free, "total": disk.total, "full_in_s": disk.full_in_s}
            self._tell(
                Alert(kind="disk_low", store=str(seen.store), text=f"{seen.store}: {text}", detail=detail)
            )

    def _tell_of_rollbacks(self, root: Path) -> None:
        with CheckpointStore(root, read_only=True) as store:
            events = store.events(kind="rolled_back", run=self._run, limit=_MAX_EVENTS)
        new = [event for event in reversed(events) if event.at > self._since]
        for event in new:
            self._since = event.at
            self._tell(_of_rollback(root, event))


def low_disk(free: int, full_in_s: float | None, *, watched_s: float, largest: int) -> str | None:
    """Return why a disk is low, as a clause; None if it is not.

    Args:
        free: Free bytes.
        full_in_s: Seconds until it is full, by its trend; None where it has none.
        watched_s: Seconds for which it has been watched.
        largest: Size of the largest newest checkpoint of a run.

    Example:
        >>> low_disk(10**9, 7200.0, watched_s=3600.0, largest=10**6)
        'the disk will be full in 2.0 h, as it fills now: 1.00 GB are free'
        >>> low_disk(10**9, 7200.0, watched_s=60.0, largest=10**6)
        >>> low_disk(10**9, None, watched_s=0.0, largest=6 * 10**8)
        'the disk has room for 1 more checkpoint: 1.00 GB are free'
    """
    left = f"{size_text(free)} are free"
    if free < _LEAST_CHECKPOINTS * largest:
        number = free // largest
        return f"the disk has room for {number} more checkpoint{'' if number == 1 else 's'}: {left}"
    limit_s = _LOW_S if watched_s >= _KNOWN_AFTER_S else _VERY_LOW_S
    if full_in_s is None or full_in_s >= limit_s:
        return None
    return f"the disk will be full in {age_text(full_in_s)}, as it fills now: {left}"


def _of_rollback(root: Path, event: Event) -> Alert:
    detail = event.detail or {}
    what = f"{detail.get('name')} was {detail.get('value')} in epoch {detail.get('epoch', 0) + 1}"
    then = (
        f"the training went back to version {event.version}, and {detail.get('skipped')} batches are skipped"
    )
    return Alert(
        kind="rollback",
        store=str(root),
        run=event.run,
        text=f"{event.run}: {what}; {then}",
        at=event.at,
        reason="nan" if detail.get("kind") == "not finite" else detail.get("kind"),
        step=detail.get("from_step"),
        epoch=detail.get("epoch"),
        version=event.version,
        detail=detail,
    )
