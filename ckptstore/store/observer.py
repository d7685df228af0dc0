"""Watches a store from outside: reads again only what has changed, writes nothing, and takes none of its locks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ckptstore.errors import CheckpointStoreError, NotAStoreError, RunNotFoundError, StoreNotFoundError
from ckptstore.records import (
    Beat,
    DiskSpace,
    Epoch,
    Mode,
    Observation,
    ObservedRun,
    Run,
    SavingCost,
    newest_run,
)
from ckptstore.storage.disk_space import DiskTrend, disk_space
from ckptstore.storage.heartbeat_file import is_held, read_heartbeat
from ckptstore.storage.layout import Layout, absolute, find_store
from ckptstore.store.store import CheckpointStore
from ckptstore.system.processes import boot_id, clock_s

# Everything is read again after so many seconds, since some states change while no file does.
_READ_ALL_AFTER_S = 15.0
# Epochs of a run that its curves show, and saves that their cost is taken from.
EPOCHS_SHOWN, SAVES_COUNTED = 500, 30

# Device, inode, time of change and size: they tell whether a file is another one, or has been written to.
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Details:
    """Facts about a run that `CheckpointStore.runs` does not tell.

    Attributes:
        read_after: The run's number of attempts, and its newest version, when they were read.
    """

    read_after: tuple[int, int | None] | None = None
    monitor: tuple[str, Mode] | None = None
    epochs: Sequence[Epoch] = ()
    cost: SavingCost | None = None


class StoreObserver:
    """Looks at a store again and again, whatever becomes of it meanwhile.

    A look asks for the times of the files first. The first one then reads everything; each later one reads at most two
    things of the manifest: the list of runs, if the manifest or a heartbeat has changed, and the metrics and saves of
    one run that has saved since they were read. SQLite's lock for reading is held for these milliseconds only.

    For one thread at a time.

    Args:
        path: The store's directory, or a folder that holds it; there may be none yet.
        run: The only run to look at; None for all.

    Attributes:
        path: The path, absolute.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str | None = None) -> None:
        self.path, self._run = absolute(path), run
        self._store: CheckpointStore | None = None
        self._manifest: _Stamp | None = None
        self._beats: Mapping[str, tuple[_Stamp, bool]] = {}
        self._runs: tuple[Run, ...] = ()
        self._live: Mapping[str, Beat] = {}
        self._details: dict[str, _Details] = {}
        self._read_at_s = -math.inf
        self._looks = 0
        self._trend = DiskTrend()
        self._was_there = False

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
        self._store = self._manifest = None
        self._details.clear()

    def look(self, chosen: str | None = None) -> Observation:
        """Return the store as it is now; where it cannot be read, the runs last seen, and why in `problem`.

        Args:
            chosen: The run that is looked at closely, so that its details come first; None for the newest.

        Raises:
            NotAStoreError: The path is a file, or its manifest is another program's.
        """
        try:
            return self.read(chosen)
        except NotAStoreError:
            raise
        except RunNotFoundError as error:
            return self._observation(
                error.store, problem=f"there is no run {error.run!r} here yet: waiting for it"
            )
        except StoreNotFoundError as error:
            if self.path.exists() and not self.path.is_dir():
                raise NotAStoreError(path=self.path, reason="it is a file, not a directory") from error
            there = "the store has been removed" if self._was_there else "there is no store here yet"
            problem = f"{there}: waiting for it"
        except CheckpointStoreError as error:
            problem = f"{error.message}\n{error.hint}" if error.hint else error.message
        except OSError as error:  # such as a folder that may not be searched
            problem = str(error)
        seen = self._observation(self.path, problem=problem)
        self.close()
        return seen

    def read(self, chosen: str | None = None, *, completely: bool = False) -> Observation:
        """Return the store as it is now.

        Args:
            chosen: As for `look`.
            completely: True to read all details of all runs.

        Raises:
            CheckpointStoreError: It cannot be read, as `CheckpointStore` says.
        """
        root = find_store(self.path)
        layout = Layout(root)
        manifest, beats = _stamp(layout.manifest), _stamps_of_beats(layout)
        is_first = self._store is None or self._manifest is None or manifest[:2] != self._manifest[:2]
        if is_first:
            self.close()
            self._store = CheckpointStore(root, read_only=True)
        now = time.monotonic()
        is_due = now - self._read_at_s >= _READ_ALL_AFTER_S
        if is_first or is_due or manifest != self._manifest or beats != self._beats:
            self._read_runs(layout)
            self._manifest, self._beats, self._read_at_s, self._was_there = manifest, beats, now, True
        self._looks += 1
        for run in self._changed_runs(chosen):
            self._details[run.name] = self._read_details(run)
            if not (is_first or completely):
                break
        return self._observation(root, disk=self._disk(root, now))

    def _read_runs(self, layout: Layout) -> None:
        assert self._store is not None
        runs = self._store.runs()
        if self._run is not None and all(run.name != self._run for run in runs):
            raise RunNotFoundError(run=self._run, store=layout.root, known=tuple(run.name for run in runs))
        self._runs = tuple(run for run in runs if self._run in (None, run.name))
        beats = (
            (run.name, read_heartbeat(layout.heartbeats / run.name)) for run in self._runs if run.is_active
        )
        self._live = {name: beat for name, beat in beats if beat is not None}

    def _changed_runs(self, chosen: str | None) -> list[Run]:
        """Return the runs whose details are not known, or have changed; every second time the chosen one is first."""
        changed = [run for run in self._runs if self._known(run).read_after != _state(run)]
        newest = newest_run(self._runs) if chosen is None else None
        name = chosen if newest is None else newest.name
        changed.sort(key=lambda run: (run.name == name) == (self._looks % 2 == 0))
        return changed

    def _known(self, run: Run) -> _Details:
        return self._details.get(run.name, _Details())

    def _read_details(self, run: Run) -> _Details:
        assert self._store is not None
        began_at = None if run.last_attempt is None else run.last_attempt.started_at
        known = self._known(run)
        # Which metric is watched changes with the training alone.
        monitor = known.monitor
        if known.read_after is None or known.read_after[0] != run.attempts or monitor is None:
            monitor = next(iter(self._store.monitors(run.name).items()), None)
        return _Details(
            read_after=_state(run),
            monitor=monitor,
            epochs=self._store.epochs(run.name, last=EPOCHS_SHOWN),
            cost=self._store.saving_cost(run.name, saves=SAVES_COUNTED, since=began_at),
        )

    def _observation(
        self, store: Path, *, disk: DiskSpace | None = None, problem: str | None = None
    ) -> Observation:
        runs = tuple(self._observed(run) for run in self._runs)
        return Observation(store=store, at=datetime.now(UTC), runs=runs, disk=disk, problem=problem)

    def _observed(self, run: Run) -> ObservedRun:
        details = self._known(run)
        beat = self._live.get(run.name)
        same_machine = beat is not None and beat.boot_id is not None and beat.boot_id == boot_id()
        return ObservedRun(
            run=run,
            phase=None if beat is None else beat.phase,
            phase_s=max(0.0, clock_s() - beat.phase_since_s) if beat is not None and same_machine else None,
            metrics=_metrics(run, beat),
            monitor=details.monitor,
            epochs=details.epochs,
            cost=details.cost,
        )

    def _disk(self, root: Path, now_s: float) -> DiskSpace | None:
        disk = disk_space(root)
        if disk is None:
            return None
        self._trend.add(now_s, disk.free)
        return replace(disk, full_in_s=self._trend.full_in_s())


def _state(run: Run) -> tuple[int, int | None]:
    """Return what the details of a run depend on."""
    return run.attempts, None if run.latest is None else run.latest.version


def _metrics(run: Run, beat: Beat | None) -> Mapping[str, float]:
    if beat is not None and beat.metrics:
        return beat.metrics
    return {} if run.latest is None else run.latest.metrics


def _stamp(path: Path) -> _Stamp:
    """Return the stamp of a file; zeros where there is none, or it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _stamps_of_beats(layout: Layout) -> dict[str, tuple[_Stamp, bool]]:
    """Return the stamps of all heartbeats, and of those of live trainings that they still live."""
    found: dict[str, tuple[_Stamp, bool]] = {}
    with suppress(OSError), os.scandir(layout.heartbeats) as entries:
        for entry in entries:
            path = Path(entry.path)
            found[entry.name] = _stamp(path), is_held(path)
    return found
