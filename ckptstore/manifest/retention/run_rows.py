"""A run's complete checkpoints, as retention looks them up: through the ends of indexes, never all of them.

The manifest records which policy a run was checked by last, and up to which event. What happened since is in the
events, so that no check looks again at what was kept then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable

from ckptstore.manifest.checkpoint_rows import fetch_versions
from ckptstore.manifest.metrics import metric_names, ranked_files
from ckptstore.manifest.retention import lookups
from ckptstore.manifest.retention.lookups import Scale
from ckptstore.manifest.runs.runs import monitors
from ckptstore.manifest.statements import raw_rows
from ckptstore.records import Checkpoint, Mode, RowKey
from ckptstore.storage.payloads.names import payload_of_file

IsIntact = Callable[[str, int], bool]

# Up to this rank payloads are checked on the disk, so that only intact ones count; below that the manifest is trusted.
_RANKS_CHECKED_ON_DISK = 64

# Kinds of events that add checkpoints, and that take away what kept them.
_ADDING = ("saved", "adopted")
_RELEASING = ("untagged", "unpinned", "unshown")
# Kinds that change which checkpoints are kept without adding any: rare, so everything is checked again.
_DISRUPTING = ("missing", "damaged", "repaired", "found")

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Row keys that one page of a first check reads, and checkpoints that are read at once.
_KEYS_PER_PAGE = 5000
_CHECKPOINTS_PER_PAGE = 500
_FIRST_PAGE = 32

# Most look-ups, and most checkpoints, that are cached.
_CACHE_SIZE = 10_000


IsCertainlyKept = Callable[[RowKey], bool]


class RunRows:
    """One run's complete checkpoints, for `ckptstore.retention.incremental.expired`.

    Args:
        connection: In a transaction.
        store: The store's directory.
        run: The run's name.
        is_intact: Returns True if a payload is there with its size.
        is_shown: Returns True if a published path still shows a checkpoint.
        known: One of its checkpoints, if the caller has just read it.

    Attributes:
        run_id: The run's id; None where there is no such run.
        already_expired: Checkpoints that earlier rules of this check let expire.
        always: Versions that always stay.
        was_checked: True if the same policy has checked the whole run before.
        scanned_to: The version up to which a first check has come.
        budgets: How far budgets have come, kept by the retention that continues the check.
        known_bytes: Bytes at the end of the previous check, and the versions saved since; None where that is not known.
    """

    def __init__(
        self,
        connection: Connection,
        store: Path,
        run: str,
        *,
        is_intact: IsIntact,
        is_shown: Callable[[str, bool], bool],
        known: Checkpoint | None = None,
    ) -> None:
        self._connection = connection
        self._store = store
        self._is_intact = is_intact
        self._is_shown = is_shown
        self._run = run
        self._record = connection.execute(lookups.RECORD, {"run": run}).one()
        self.run_id: int | None = self._record.run_id
        self.already_expired: Sequence[Checkpoint] = ()
        self.always: frozenset[int] = frozenset()
        self.was_checked = False
        self.scanned_to = 0
        self.budgets: Any = None
        self.known_bytes: tuple[int, list[int]] | None = None
        self._results: dict[object, Collection[int]] = {}
        self._lookups: dict[tuple[object, ...], tuple[list[int], bool]] = {}
        self._known: dict[int, Checkpoint] = {} if known is None else {known.version: known}
        self._intact_nearby: dict[int, bool] = {}
        # Published paths of the versions looked up last.
        self._paths: dict[int, list[tuple[str, bool]]] = {}

    def _execute(self, statement: Executable, **which: object) -> CursorResult[*tuple[Any, ...]]:
        return self._connection.execute(statement, {"run_id": self.run_id, **which})

    # --- since the last check ------------------------------------------------------------------------

    @property
    def _last_check(self) -> Any:
        """The record of the last check, or None."""
        return None if self._record.policy is None else self._record

    @property
    def last_event(self) -> int:
        """The newest event."""
        return int(self._record.last_event or 0)

    def was_checked_by(self, policy: str) -> bool:
        """Return True if this policy has checked the whole run before, and no event calls for another full check."""
        last = self._last_check
        self.was_checked = last is not None and last.policy == policy and not self._since(_DISRUPTING)
        return self.was_checked

    def _since(self, kinds: Sequence[str]) -> list[int]:
        return [version for kind in kinds for version in self._versions_by_kind.get(kind, ())]

    @cached_property
    def _versions_by_kind(self) -> Mapping[str, Sequence[int]]:
        """Versions that events since the last check are about, by the kinds of the events."""
        found: dict[str, list[int]] = {}
        for kind, version in self._execute(lookups.VERSIONS_BY_KIND, event_id=self._last_check.event_id):
            if version is not None:
                found.setdefault(kind, []).append(version)
        return found

    def events_after(self, event_id: int) -> list[tuple[str, int | None, Any]]:
        """Return kinds, versions and details of the events after an event, in order."""
        return [tuple(row) for row in self._execute(lookups.EVENTS_AFTER, event_id=event_id)]

    @cached_property
    def added(self) -> list[Checkpoint]:
        """Checkpoints added since the last check."""
        return self.get(self._since(_ADDING)) if self.was_checked else []

    @cached_property
    def released(self) -> list[int]:
        """Versions that lost a tag, a pin or a published path since the last check."""
        return self._since(_RELEASING) if self.was_checked else []

    @property
    def before(self) -> datetime | None:
        """Time of the newest save at the last check; None if there was none."""
        moment: datetime | None = self._last_check.newest_at
        return moment

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all payloads."""
        if not self.was_checked and self.known_bytes is not None:
            at_last_check, saved = self.known_bytes
            return at_last_check + sum(checkpoint.nbytes for checkpoint in self.get(saved))
        if not self.was_checked:
            return int(self._execute(lookups.TOTAL).scalar() or 0)
        return int(self._last_check.nbytes) + sum(checkpoint.nbytes for checkpoint in self.added)

    @cached_property
    def resumed(self) -> list[int]:
        """The version that the run was resumed from last, and those before, back to the last check."""
        if self._last_check is None:
            found = list(self._execute(lookups.RESUMED).scalars())
        else:
            found = [self._record.resumed_before, *self._since(("resumed",))]
        return [version for version in reversed(found) if version is not None]

    @cached_property
    def monitors(self) -> Mapping[str, Mode]:
        """The metrics that the run monitors, each with its better direction."""
        return dict(monitors(self._connection, self._run))

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics that the run's complete checkpoints recorded."""
        return metric_names(self._connection, self._run)

    @property
    def last_version(self) -> int:
        """The newest version; 0 where there is none."""
        return next((version for version, *_ in self._nearest), 0)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint."""
        return next(iter(self.get([self.last_version])), None)

    # --- look-ups ------------------------------------------------------------------------------------

    def nth_newest(self, n: int) -> int | None:
        """Return the version of the n-th newest intact checkpoint; None if there are fewer."""
        if n <= _RANKS_CHECKED_ON_DISK:
            intact = self.newest(n)
            return intact[n - 1] if len(intact) == n else None
        found = self._first_of("nth", 1, lambda: list(self._execute(lookups.NTH, skip=n - 1).scalars()), n)
        return next(iter(found), None)

    def newest(self, limit: int, *, resumable: bool = False) -> list[int]:
        """Return the versions of the newest intact checkpoints, newest first."""
        near = self._near(limit, resumable=resumable)
        if near is not None:
            return near
        newest = lookups.NEWEST_RESUMABLE if resumable else lookups.NEWEST
        return self._first_of(
            "newest", limit, lambda: self._first_intact(self._execute(newest), limit), resumable
        )

    def below(self, version: int, limit: int) -> list[int]:
        """Return the next versions below one whose checkpoints are intact, newest first."""
        near = self._near(limit, below=version)
        if near is not None:
            return near
        return self._first_intact(self._execute(lookups.BELOW, before=version), limit)

    def _near(self, limit: int, *, resumable: bool = False, below: int | None = None) -> list[int] | None:
        """Return what `newest` or `below` would, if the newest few suffice; else None."""
        is_complete = len(self._nearest) < lookups.NEAR
        if limit > lookups.NEAR and not is_complete:
            return None
        intact = (
            version
            for version, file, nbytes, is_resumable in self._nearest
            if (is_resumable or not resumable) and (below is None or version < below)
            if self._is_intact_nearby(version, file, nbytes)
        )
        found = list(islice(intact, limit))
        return found if len(found) == limit or is_complete else None

    @cached_property
    def _nearest(self) -> Sequence[tuple[int, str, int, bool]]:
        """The newest few, which answer nearly everything that a save asks."""
        return [tuple(row) for row in self._execute(lookups.NEAREST)]

    def _is_intact_nearby(self, version: int, file: str, nbytes: int) -> bool:
        """Return True if one of the newest few is intact; the disk is asked once for each."""
        if version not in self._intact_nearby:
            self._intact_nearby[version] = self._is_intact(payload_of_file(file), nbytes)
        return self._intact_nearby[version]

    def ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        """Return the versions of the best intact checkpoints, best first, of equals the earlier; NaN is never best."""
        # With as many more as are new: the next question is mostly for those that the new ones displaced.
        more = len(self.added) if self.was_checked else 0
        some = max(limit, 1 + more)
        return self._first_of("ranked", limit, lambda: self._ranked(metric, mode, some), metric, mode)

    def _ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        found: list[int] = []
        for version, file, nbytes in ranked_files(self._connection, metric, mode, self._run):
            if len(found) >= _RANKS_CHECKED_ON_DISK or self._is_intact(payload_of_file(file), nbytes):
                found.append(version)
            if len(found) >= limit:
                break
        return found

    def first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        """Return the lowest intact versions whose position on a scale lies in a half-open range."""
        return self._first_of("first", limit, lambda: self._first_in(scale, low, high, limit), scale, low)

    def _first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        span: tuple[object, object] = (low, high)
        if scale == "microseconds":
            span = _UNIX_EPOCH + timedelta(microseconds=low), _UNIX_EPOCH + timedelta(microseconds=high)
        return self._first_intact(self._execute(lookups.FIRST_IN[scale], low=span[0], high=span[1]), limit)

    def greatest(self, scale: Scale, upto: int) -> int | None:
        """Return an upper bound of the positions on a scale of the versions up to one; None if there are none."""
        found = self._execute(lookups.GREATEST[scale], upto=upto).scalar()
        if isinstance(found, datetime):
            return (found - _UNIX_EPOCH) // timedelta(microseconds=1)
        # The position of a finished epoch is one higher.
        return None if found is None else int(found) + (scale == "epochs")

    def saved_between(self, low: datetime, high: datetime) -> list[int]:
        """Return the versions saved in a half-open span of time."""
        return list(self._execute(lookups.SAVED_BETWEEN, low=low, high=high).scalars())

    def newest_at(self) -> datetime:
        """Return the time of the newest intact checkpoint; a clock may have been set back since older ones."""
        with self._execute(lookups.NEWEST_AT) as rows:
            at = (moment for moment, file, nbytes in rows if self._is_intact(payload_of_file(file), nbytes))
            found: datetime = next(at, _UNIX_EPOCH)
        return found

    def oldest(self, after: int = 0, *, without_metrics: bool = False) -> Iterator[Checkpoint]:
        """Yield those after a version that are not always kept, oldest first; optionally without their metrics."""
        # Mostly few are needed.
        for limit in chain((_FIRST_PAGE,), repeat(_CHECKPOINTS_PER_PAGE)):
            page = list(self._execute(lookups.OLDEST, after=after, limit=limit).scalars())
            if not page:
                return
            after = page[-1]
            self._look_up_paths(page)
            found = fetch_versions(self._connection, self._store, page, with_metrics=not without_metrics)
            yield from filter(self.may_expire, found)
            if len(page) < limit:
                return

    def get(self, versions: Iterable[int], *, without_metrics: bool = False) -> list[Checkpoint]:
        """Return the complete checkpoints of some versions, oldest first; `without_metrics` if they may lack them."""
        wanted = set(versions)
        found = [self._known[version] for version in wanted & self._known.keys()]
        rest = wanted - self._known.keys()
        if rest and without_metrics:
            found += fetch_versions(self._connection, self._store, rest, with_metrics=False)
        elif rest:
            read = fetch_versions(self._connection, self._store, rest)
            found += read
            if len(self._known) + len(read) <= _CACHE_SIZE:
                self._known.update((checkpoint.version, checkpoint) for checkpoint in read)
        complete = (
            checkpoint
            for checkpoint in found
            if checkpoint.state == "complete" and checkpoint.run == self._run
        )
        return sorted(complete, key=lambda checkpoint: checkpoint.version)

    def undecided(
        self, is_certainly_kept: IsCertainlyKept, after: int, upto: int | None
    ) -> Iterator[Checkpoint]:
        """Yield those in a range of versions that are not certainly kept, oldest first, without their metrics."""
        while page := self._row_keys(after, upto):
            after = page[-1].version
            wanted = [key.version for key in page if not is_certainly_kept(key)]
            for begin in range(0, len(wanted), _CHECKPOINTS_PER_PAGE):
                part = wanted[begin : begin + _CHECKPOINTS_PER_PAGE]
                yield from fetch_versions(self._connection, self._store, part, with_metrics=False)

    def _row_keys(self, after: int, upto: int | None) -> list[RowKey]:
        which = {"run_id": self.run_id, "after": after, "upto": upto, "limit": _KEYS_PER_PAGE}
        statement = lookups.ROW_KEYS if upto is None else lookups.ROW_KEYS_UPTO
        rows = list(raw_rows(self._connection, statement, which))
        if not rows:
            return []
        tagged = set(self._execute(lookups.TAGGED, first=rows[0][0], last=rows[-1][0]).scalars())
        return [
            RowKey(version, epoch, batch, step, datetime.fromisoformat(at), version in tagged)
            for version, epoch, batch, step, at in rows
        ]

    def may_expire(self, checkpoint: Checkpoint) -> bool:
        """Return True if a checkpoint is intact, neither pinned nor shown, and none of those that always stay."""
        if checkpoint.pinned or checkpoint.version in self.always:
            return False
        if self._shown(checkpoint.version):
            return False
        return self._is_intact(checkpoint.payload, checkpoint.nbytes)

    def _shown(self, version: int) -> bool:
        if not self.was_checked:
            return version in self._all_shown
        if version not in self._paths:
            self._look_up_paths([version])
        return any(self._is_shown(path, pending) for path, pending in self._paths[version])

    def _look_up_paths(self, versions: Sequence[int]) -> None:
        """Look up the published paths of some versions in one query; `is_shown` then asks the disk for each."""
        if not self.was_checked:
            return  # then `_all_shown` has them
        self._paths = {version: [] for version in versions}
        for version, path, pending in self._execute(lookups.SHOWN, versions=versions):
            self._paths[version].append((path, pending))

    @cached_property
    def _all_shown(self) -> set[int]:
        rows = self._execute(lookups.ALL_SHOWN)
        return {version for version, path, pending in rows if self._is_shown(path, pending)}

    def _first_intact(self, chosen: CursorResult[*tuple[Any, ...]], limit: int) -> list[int]:
        """Return the versions of the first intact checkpoints of a result, and close it."""
        found: list[int] = []
        with chosen as rows:
            for version, file, nbytes in rows:
                if self._is_intact(payload_of_file(file), nbytes):
                    found.append(version)
                if len(found) >= limit:
                    break
        return found

    def cached(self, what: object, find: Callable[[], Collection[int]]) -> Collection[int]:
        """Return the result stored under a key, or compute and store it."""
        if what not in self._results:
            self._results[what] = find()
        return self._results[what]

    def _first_of(self, what: str, limit: int, find: Callable[[], list[int]], *which: object) -> list[int]:
        """Return the first results of a look-up, from an earlier call if that asked for at least as many."""
        key = (what, *which)
        found, is_complete = self._lookups.get(key, ([], False))
        if len(found) < limit and not is_complete:
            if len(self._lookups) >= _CACHE_SIZE:
                self._lookups.clear()
            found = find()
            self._lookups[key] = found, len(found) < limit
        return found[:limit]
