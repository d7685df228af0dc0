"""What retention looks up in a manifest: a run's checkpoints seen through the ends of indexes, and a note of how far.

The note says by which policy a run was judged last, and up to which event. What happened since stands in the events,
so that no pass looks at what was kept then.
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
from ckptstore.manifest.runs import monitors
from ckptstore.manifest.statements import raw_rows
from ckptstore.records import Checkpoint, Mode, RowKey

IsWhole = Callable[[Path, int], bool]

# Up to this rank payloads are looked at, so that only whole ones count; further down the manifest's word is taken.
LOOKED_AT = 64
_NEW = ("saved", "adopted")
_RELEASED = ("untagged", "unpinned", "unshown")
# These change what was kept without anything new: rare, and everything is looked at again.
_UPSET = ("missing", "damaged", "repaired", "found")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Checkpoints of a page at a first look, and of those the ones that are judged.
_SEEN_AT_ONCE = 5000
_JUDGED_AT_ONCE = 500
# Look-ups that are remembered.
_MEMORY = 10_000


IsCertainlyKept = Callable[[RowKey], bool]


class RunRows:
    """One run's complete checkpoints, for `ckptstore.retention.incremental.expired`.

    Args:
        connection: In a transaction.
        store: The store's directory.
        run: The run; it is there.
        is_whole: Whether a payload is there with its size.
        is_shown: Whether a published path still shows something.
        known: One of its checkpoints, if the caller has just read it.
    """

    def __init__(
        self,
        connection: Connection,
        store: Path,
        run: str,
        *,
        is_whole: IsWhole,
        is_shown: Callable[[str, bool], bool],
        known: Checkpoint | None = None,
    ) -> None:
        self._connection = connection
        self._store = store
        self._is_whole = is_whole
        self._is_shown = is_shown
        self._run = run
        self._standing = connection.execute(lookups.STANDING, {"run": run}).one()
        self.run_id: int | None = self._standing.run_id
        self.already_expired: Sequence[Checkpoint] = ()
        self.always: frozenset[int] = frozenset()
        self.is_judged = False
        self.scanned_to = 0
        # How far budgets have come, as the retention that looks on has it.
        self.budgets: Any = None
        # Bytes of what there was, and what was saved since, where a turn before has told.
        self.counted: tuple[int, list[int]] | None = None
        self._found: dict[object, Collection[int]] = {}
        self._memory: dict[tuple[object, ...], tuple[list[int], bool]] = {}
        self._known: dict[int, Checkpoint] = {} if known is None else {known.version: known}
        self._there: dict[int, bool] = {}
        # Of those that were looked at last.
        self._paths: dict[int, list[tuple[str, bool]]] = {}

    def _ask(self, statement: Executable, **which: object) -> CursorResult[*tuple[Any, ...]]:
        return self._connection.execute(statement, {"run_id": self.run_id, **which})

    # --- since the last time -------------------------------------------------------------------------

    @property
    def _noted(self) -> Any:
        """What was noted the last time, or None."""
        return None if self._standing.policy is None else self._standing

    @property
    def last_event(self) -> int:
        """The newest event."""
        return int(self._standing.last_event or 0)

    def was_judged_by(self, policy: str) -> bool:
        """Tell whether everything that was here was judged by this policy, and nothing has upset that since."""
        self.is_judged = self._noted is not None and self._noted.policy == policy and not self._since(_UPSET)
        return self.is_judged

    def _since(self, kinds: Sequence[str]) -> list[int]:
        return [version for kind in kinds for version in self._news.get(kind, ())]

    @cached_property
    def _news(self) -> Mapping[str, Sequence[int]]:
        """Versions that events since the last time tell of, by the events' kinds."""
        found: dict[str, list[int]] = {}
        for kind, version in self._ask(lookups.NEWS, event_id=self._noted.event_id):
            if version is not None:
                found.setdefault(kind, []).append(version)
        return found

    def events_behind(self, event_id: int) -> list[tuple[str, int | None, Any]]:
        """Return kinds, versions and details of the events behind one, in order."""
        return [tuple(row) for row in self._ask(lookups.EVENTS_BEHIND, event_id=event_id)]

    @cached_property
    def fresh(self) -> list[Checkpoint]:
        """What was saved since."""
        return self.get(self._since(_NEW)) if self.is_judged else []

    @cached_property
    def released(self) -> list[int]:
        """What lost a tag, a pin or the place where it was shown since."""
        return self._since(_RELEASED) if self.is_judged else []

    @property
    def before(self) -> datetime | None:
        """When the newest was saved that was judged then."""
        moment: datetime | None = self._noted.newest_at
        return moment

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all."""
        if not self.is_judged and self.counted is not None:
            before, saved = self.counted
            return before + sum(checkpoint.nbytes for checkpoint in self.get(saved))
        if not self.is_judged:
            return int(self._ask(lookups.TOTAL).scalar() or 0)
        return int(self._noted.nbytes) + sum(checkpoint.nbytes for checkpoint in self.fresh)

    @cached_property
    def resumed(self) -> list[int]:
        """What the run was resumed from last, and before that since the last time."""
        if self._noted is None:
            found = list(self._ask(lookups.RESUMED).scalars())
        else:
            found = [self._standing.resumed_before, *self._since(("resumed",))]
        return [version for version in reversed(found) if version is not None]

    @cached_property
    def monitors(self) -> Mapping[str, Mode]:
        """The metrics that writers watch."""
        return dict(monitors(self._connection, self._run))

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics that were recorded."""
        return metric_names(self._connection, self._run)

    @property
    def last_version(self) -> int:
        """The newest version; 0 where there is none."""
        return next((version for version, *_ in self._nearest), 0)

    def latest(self) -> Checkpoint | None:
        """Return the newest."""
        return next(iter(self.get([self.last_version])), None)

    # --- look-ups ------------------------------------------------------------------------------------

    def nth_newest(self, n: int) -> int | None:
        """Return the version of the n-th newest that is whole; None where there are fewer."""
        if n <= LOOKED_AT:
            whole = self.newest(n)
            return whole[n - 1] if len(whole) == n else None
        found = self._remembered("nth", 1, lambda: list(self._ask(lookups.NTH, skip=n - 1).scalars()), n)
        return next(iter(found), None)

    def newest(self, limit: int, *, resumable: bool = False) -> list[int]:
        """Return the versions of the newest that are whole, newest first."""
        near = self._near(limit, resumable=resumable)
        if near is not None:
            return near
        newest = lookups.NEWEST_RESUMABLE if resumable else lookups.NEWEST
        return self._remembered("newest", limit, lambda: self._whole(self._ask(newest), limit), resumable)

    def below(self, version: int, limit: int) -> list[int]:
        """Return the next versions below one that are whole, newest first."""
        near = self._near(limit, below=version)
        if near is not None:
            return near
        return self._whole(self._ask(lookups.BELOW, before=version), limit)

    def _near(self, limit: int, *, resumable: bool = False, below: int | None = None) -> list[int] | None:
        """Return what `newest` or `below` would, where the newest few are enough to tell; else None."""
        is_complete = len(self._nearest) < lookups.NEAR
        if limit > lookups.NEAR and not is_complete:
            return None
        whole = (
            version
            for version, file, nbytes, is_resumable in self._nearest
            if (is_resumable or not resumable) and (below is None or version < below)
            if self._is_there(version, file, nbytes)
        )
        found = list(islice(whole, limit))
        return found if len(found) == limit or is_complete else None

    @cached_property
    def _nearest(self) -> Sequence[tuple[int, str, int, bool]]:
        """The newest few, from which nearly all is told that a save asks."""
        return [tuple(row) for row in self._ask(lookups.NEAREST)]

    def _is_there(self, version: int, file: str, nbytes: int) -> bool:
        """Tell whether one of the newest few is whole, as the disk said first."""
        if version not in self._there:
            self._there[version] = self._is_whole(self._store / file, nbytes)
        return self._there[version]

    def ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        """Return the versions of the best that are whole, best first, of equals the earlier; NaN is none."""
        # With as many more as are new: who asks for the best asks next for what these have left behind.
        more = len(self.fresh) if self.is_judged else 0
        some = max(limit, 1 + more)
        return self._remembered("ranked", limit, lambda: self._ranked(metric, mode, some), metric, mode)

    def _ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        found: list[int] = []
        for version, file, nbytes in ranked_files(self._connection, metric, mode, self._run):
            if len(found) >= LOOKED_AT or self._is_whole(self._store / file, nbytes):
                found.append(version)
            if len(found) >= limit:
                break
        return found

    def first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        """Return the lowest versions that are whole and whose place on a scale is in a half-open span."""
        return self._remembered("first", limit, lambda: self._first_in(scale, low, high, limit), scale, low)

    def _first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        span: tuple[object, object] = (low, high)
        if scale == "microseconds":
            span = _EPOCH + timedelta(microseconds=low), _EPOCH + timedelta(microseconds=high)
        return self._whole(self._ask(lookups.FIRST_IN[scale], low=span[0], high=span[1]), limit)

    def greatest(self, scale: Scale, upto: int) -> int | None:
        """Return a place on a scale beyond which none is whose version is up to this; None where there is none."""
        found = self._ask(lookups.GREATEST[scale], upto=upto).scalar()
        if isinstance(found, datetime):
            return (found - _EPOCH) // timedelta(microseconds=1)
        # An epoch that is finished lies one further.
        return None if found is None else int(found) + (scale == "epochs")

    def saved_between(self, low: datetime, high: datetime) -> list[int]:
        """Return the versions saved in a half-open span of time."""
        return list(self._ask(lookups.SAVED_BETWEEN, low=low, high=high).scalars())

    def newest_at(self) -> datetime:
        """Return when the newest by the clock was saved; of those that are whole."""
        with self._ask(lookups.NEWEST_AT) as rows:
            at = (moment for moment, file, nbytes in rows if self._is_whole(self._store / file, nbytes))
            found: datetime = next(at, _EPOCH)
        return found

    def oldest(self, after: int = 0, *, without_metrics: bool = False) -> Iterator[Checkpoint]:
        """Yield those after a version that are not always kept, oldest first; optionally without their metrics."""
        # Mostly few are asked for.
        for limit in chain((32,), repeat(_JUDGED_AT_ONCE)):
            page = list(self._ask(lookups.OLDEST, after=after, limit=limit).scalars())
            if not page:
                return
            after = page[-1]
            self._look_where_shown(page)
            found = fetch_versions(self._connection, self._store, page, with_metrics=not without_metrics)
            yield from filter(self.is_free, found)
            if len(page) < limit:
                return

    def get(self, versions: Iterable[int], *, without_metrics: bool = False) -> list[Checkpoint]:
        """Return those of some versions that are complete, oldest first; `without_metrics` if they may lack them."""
        wanted = set(versions)
        found = [self._known[version] for version in wanted & self._known.keys()]
        rest = wanted - self._known.keys()
        if rest and without_metrics:
            found += fetch_versions(self._connection, self._store, rest, with_metrics=False)
        elif rest:
            read = fetch_versions(self._connection, self._store, rest)
            found += read
            if len(self._known) + len(read) <= _MEMORY:
                self._known.update((one.version, one) for one in read)
        here = (one for one in found if one.state == "complete" and one.run == self._run)
        return sorted(here, key=lambda one: one.version)

    def undecided(
        self, is_certainly_kept: IsCertainlyKept, after: int, upto: int | None
    ) -> Iterator[Checkpoint]:
        """Yield those in a span of versions that are not kept for certain, oldest first, without their metrics."""
        while page := self._row_keys(after, upto):
            after = page[-1].version
            wanted = [one.version for one in page if not is_certainly_kept(one)]
            for begin in range(0, len(wanted), _JUDGED_AT_ONCE):
                part = wanted[begin : begin + _JUDGED_AT_ONCE]
                yield from fetch_versions(self._connection, self._store, part, with_metrics=False)

    def _row_keys(self, after: int, upto: int | None) -> list[RowKey]:
        which = {"run_id": self.run_id, "after": after, "upto": upto, "limit": _SEEN_AT_ONCE}
        statement = lookups.ROW_KEYS if upto is None else lookups.ROW_KEYS_UPTO
        rows = list(raw_rows(self._connection, statement, which))
        if not rows:
            return []
        tagged = set(self._ask(lookups.TAGGED, first=rows[0][0], last=rows[-1][0]).scalars())
        return [
            RowKey(version, epoch, batch, step, datetime.fromisoformat(at), version in tagged)
            for version, epoch, batch, step, at in rows
        ]

    def is_free(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint is whole, neither pinned nor shown, and none of those that always stay."""
        if checkpoint.pinned or checkpoint.version in self.always:
            return False
        if self._shown(checkpoint.version):
            return False
        return self._is_whole(checkpoint.path, checkpoint.nbytes)

    def _shown(self, version: int) -> bool:
        if not self.is_judged:
            return version in self._all_shown
        if version not in self._paths:
            self._look_where_shown([version])
        return any(self._is_shown(path, pending) for path, pending in self._paths[version])

    def _look_where_shown(self, versions: Sequence[int]) -> None:
        """Note at which paths some versions are shown, for one look at the disk after the other."""
        if not self.is_judged:
            return  # then all are known
        self._paths = {version: [] for version in versions}
        for version, path, pending in self._ask(lookups.SHOWN, versions=versions):
            self._paths[version].append((path, pending))

    @cached_property
    def _all_shown(self) -> set[int]:
        rows = self._ask(lookups.ALL_SHOWN)
        return {version for version, path, pending in rows if self._is_shown(path, pending)}

    def _whole(self, chosen: CursorResult[*tuple[Any, ...]], limit: int) -> list[int]:
        found: list[int] = []
        with chosen as rows:
            for version, file, nbytes in rows:
                if self._is_whole(self._store / file, nbytes):
                    found.append(version)
                if len(found) >= limit:
                    break
        return found

    def remember(self, what: object, find: Callable[[], Collection[int]]) -> Collection[int]:
        """Return what was found before under a key, or find it."""
        if what not in self._found:
            self._found[what] = find()
        return self._found[what]

    def _remembered(self, what: str, limit: int, find: Callable[[], list[int]], *which: object) -> list[int]:
        """Return the first of what is found, or was found before when at least as many were asked for."""
        key = (what, *which)
        found, is_complete = self._memory.get(key, ([], False))
        if len(found) < limit and not is_complete:
            if len(self._memory) >= _MEMORY:
                self._memory.clear()
            found = find()
            self._memory[key] = found, len(found) < limit
        return found[:limit]
