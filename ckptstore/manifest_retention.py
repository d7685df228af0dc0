"""What retention looks up in a manifest: a run's checkpoints seen through the ends of indexes, and a note of how far.

The note says by which policy a run was judged last, and up to which event. What happened since stands in the events,
so that no pass looks at what was kept then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, case, func, select, text

from ckptstore import manifest_queries as queries
from ckptstore import manifest_rows
from ckptstore.models import CHECKPOINTS, COMPLETE, EVENTS, PUBLISHED, RETENTION, RUNS, TAGS
from ckptstore.records import Checkpoint, Glimpse, Mode

IsWhole = Callable[[Path, int], bool]
Scale = Literal["epochs", "steps", "microseconds"]

# Up to this rank payloads are looked at, so that only whole ones count; further down the manifest's word is taken.
LOOKED_AT = 64
_NEW = ("saved", "adopted")
_RELEASED = ("untagged", "unpinned", "unshown")
# These change what was kept without anything new: rare, and everything is looked at again.
_UPSET = ("missing", "damaged", "repaired", "found")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Finished epochs.
_FINISHED = CHECKPOINTS.epoch + case((CHECKPOINTS.batch.is_(None), 1), else_=0)
# Checkpoints of a page at a first look, and of those the ones that are judged.
_SEEN_AT_ONCE = 5000
_JUDGED_AT_ONCE = 500
# Look-ups that are remembered.
_MEMORY = 10_000
_UNPINNED = text("NOT checkpoints.pinned")


IsSure = Callable[[Glimpse], bool]


class RunRows:
    """One run's complete checkpoints, for `ckptstore.retention.steps.gone`.

    Args:
        connection: In a transaction.
        store: The store's directory.
        run: The run; it is there.
        is_whole: Whether a payload is there with its size.
        is_shown: Whether a published path still shows something.
    """

    def __init__(
        self,
        connection: Connection,
        store: Path,
        run: str,
        *,
        is_whole: IsWhole,
        is_shown: Callable[[str, bool], bool],
    ) -> None:
        self._connection = connection
        self._store = store
        self._is_whole = is_whole
        self._is_shown = is_shown
        self._run = run
        self.run_id = connection.execute(select(RUNS.id).where(RUNS.name == run)).scalar()
        self._here = (CHECKPOINTS.run_id == self.run_id, CHECKPOINTS.state == COMPLETE)
        self.let_go: Sequence[Checkpoint] = ()
        self.always: frozenset[int] = frozenset()
        self.is_judged = False
        self.passed = 0
        # How far budgets have come, as the retention that looks on has it.
        self.budgets: Any = None
        # Bytes of what there was, and what was saved since, where a turn before has told.
        self.counted: tuple[int, list[int]] | None = None
        self._found: dict[object, Collection[int]] = {}
        self._memory: dict[tuple[object, ...], list[int]] = {}

    # --- since the last time -------------------------------------------------------------------------

    @cached_property
    def _noted(self) -> Any:
        return self._connection.execute(
            select(RETENTION.policy, RETENTION.event_id, RETENTION.newest_at, RETENTION.nbytes).where(
                RETENTION.run_id == self.run_id
            )
        ).one_or_none()

    @cached_property
    def last_event(self) -> int:
        """The newest event."""
        return int(self._connection.execute(select(func.max(EVENTS.id))).scalar() or 0)

    def was_judged_by(self, policy: str) -> bool:
        """Tell whether everything that was here was judged by this policy, and nothing has upset that since."""
        self.is_judged = self._noted is not None and self._noted.policy == policy and not self._since(_UPSET)
        return self.is_judged

    def _since(self, kinds: Sequence[str]) -> list[int]:
        return [version for kind in kinds for version in self._news.get(kind, ())]

    @cached_property
    def _news(self) -> Mapping[str, Sequence[int]]:
        """Versions that events since the last time tell of, by the events' kinds."""
        chosen = select(EVENTS.kind, EVENTS.version).where(
            EVENTS.id > self._noted.event_id, EVENTS.run_id == self.run_id
        )
        found: dict[str, list[int]] = {}
        for kind, version in self._connection.execute(chosen):
            if version is not None:
                found.setdefault(kind, []).append(version)
        return found

    def events_behind(self, event_id: int) -> list[tuple[str, int | None, Any]]:
        """Return kinds, versions and details of the events behind one, in order."""
        chosen = select(EVENTS.kind, EVENTS.version, EVENTS.detail).where(
            EVENTS.id > event_id, EVENTS.run_id == self.run_id
        )
        return [tuple(row) for row in self._connection.execute(chosen.order_by(EVENTS.id))]

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
            total = select(func.sum(CHECKPOINTS.nbytes)).where(*self._here)
            return int(self._connection.scalar(total) or 0)
        return int(self._noted.nbytes) + sum(checkpoint.nbytes for checkpoint in self.fresh)

    @cached_property
    def resumed(self) -> list[int]:
        """What the run was resumed from last, and before that since the last time."""
        chosen = (
            select(EVENTS.id, EVENTS.version)
            .where(EVENTS.kind == "resumed", EVENTS.run_id == self.run_id)
            .order_by(EVENTS.id.desc())
        )
        found: list[int] = []
        seen = 0 if self._noted is None else self._noted.event_id
        for event, version in self._connection.execute(chosen):
            if version is not None:
                found.append(version)
            if event <= seen:
                break
        return found

    @cached_property
    def monitors(self) -> Mapping[str, Mode]:
        """The metrics that writers watch."""
        return dict(queries.monitors(self._connection, self._run))

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics that were recorded."""
        return queries.metric_names(self._connection, self._run)

    @property
    def last_version(self) -> int:
        """The newest version."""
        return int(self._connection.scalar(queries.latest_version(self._run)) or 0)

    def latest(self) -> Checkpoint | None:
        """Return the newest."""
        return manifest_rows.one(self._connection, self._store, queries.latest_version(self._run))

    # --- look-ups ------------------------------------------------------------------------------------

    def nth_newest(self, n: int) -> int | None:
        """Return the version of the n-th newest that is whole; None where there are fewer."""
        if n <= LOOKED_AT:
            whole = self.newest(n)
            return whole[n - 1] if len(whole) == n else None
        newest = select(CHECKPOINTS.version).where(*self._here).order_by(CHECKPOINTS.version.desc())
        found = self._remembered(
            "nth", n, lambda: list(self._connection.scalars(newest.offset(n - 1).limit(1)))
        )
        return next(iter(found), None)

    def newest(self, limit: int, *, resumable: bool = False) -> list[int]:
        """Return the versions of the newest that are whole, newest first."""
        chosen = self._places().order_by(CHECKPOINTS.version.desc())
        if resumable:
            chosen = chosen.where(CHECKPOINTS.resumable)
        return self._remembered("newest", limit, lambda: self._whole(chosen, limit), resumable)

    def below(self, version: int, limit: int) -> list[int]:
        """Return the next versions below one that are whole, newest first."""
        chosen = self._places().where(CHECKPOINTS.version < version)
        return self._whole(chosen.order_by(CHECKPOINTS.version.desc()), limit)

    def ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        """Return the versions of the best that are whole, best first, of equals the earlier; NaN is none."""
        return self._remembered("ranked", limit, lambda: self._ranked(metric, mode, limit), metric, mode)

    def _ranked(self, metric: str, mode: Mode, limit: int) -> list[int]:
        found: list[int] = []
        for version in queries.ranked_versions(self._connection, metric, mode, self._run):
            if len(found) >= LOOKED_AT or self._looks_whole(version):
                found.append(version)
            if len(found) >= limit:
                break
        return found

    def _looks_whole(self, version: int) -> bool:
        place = select(CHECKPOINTS.file, CHECKPOINTS.nbytes).where(CHECKPOINTS.version == version)
        file, nbytes = self._connection.execute(place).one()
        return self._is_whole(self._store / file, nbytes)

    def first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        """Return the lowest versions that are whole and whose place on a scale is in a half-open span."""
        return self._remembered("first", limit, lambda: self._first_in(scale, low, high, limit), scale, low)

    def _first_in(self, scale: Scale, low: int, high: int, limit: int) -> list[int]:
        chosen = self._places().order_by(CHECKPOINTS.version)
        if scale == "epochs":
            # Both conditions: the first is what an index can do.
            chosen = chosen.where(
                CHECKPOINTS.epoch.between(low - 1, high - 1), low <= _FINISHED, high > _FINISHED
            )
        elif scale == "steps":
            chosen = chosen.where(CHECKPOINTS.step >= low, CHECKPOINTS.step < high)
        else:
            moments = (_EPOCH + timedelta(microseconds=place) for place in (low, high))
            chosen = chosen.where(*self._saved_in(*moments))
        return self._whole(chosen, limit)

    def greatest(self, scale: Scale, upto: int) -> int | None:
        """Return a place on a scale beyond which none is whose version is up to this; None where there is none."""
        column: dict[Scale, ColumnElement[Any]] = {
            "epochs": CHECKPOINTS.epoch,
            "steps": CHECKPOINTS.step,
            "microseconds": CHECKPOINTS.created_at,
        }
        chosen = select(column[scale]).where(*self._here, CHECKPOINTS.version <= upto)
        found = self._connection.scalar(chosen.order_by(column[scale].desc()).limit(1))
        if isinstance(found, datetime):
            return (found - _EPOCH) // timedelta(microseconds=1)
        # An epoch that is finished lies one further.
        return None if found is None else int(found) + (scale == "epochs")

    def saved_between(self, low: datetime, high: datetime) -> list[int]:
        """Return the versions saved in a half-open span of time."""
        chosen = select(CHECKPOINTS.version).where(*self._here, *self._saved_in(low, high))
        return list(self._connection.scalars(chosen))

    def _saved_in(self, low: datetime, high: datetime) -> tuple[ColumnElement[bool], ...]:
        return CHECKPOINTS.created_at >= low, CHECKPOINTS.created_at < high

    def newest_at(self) -> datetime:
        """Return when the newest by the clock was saved; of those that are whole."""
        chosen = (
            select(CHECKPOINTS.created_at, CHECKPOINTS.file, CHECKPOINTS.nbytes)
            .where(*self._here)
            .order_by(CHECKPOINTS.created_at.desc())
        )
        with self._connection.execute(chosen) as rows:
            for moment, file, nbytes in rows:
                if self._is_whole(self._store / file, nbytes):
                    return moment
        return _EPOCH

    def oldest(self, after: int = 0, *, bare: bool = False) -> Iterator[Checkpoint]:
        """Yield those behind a version that do not stay whatever a rule says, oldest first; `bare` without metrics."""
        # Mostly few are asked for.
        for limit in chain((32,), repeat(_JUDGED_AT_ONCE)):
            chosen = select(CHECKPOINTS.version).where(*self._here, _UNPINNED, CHECKPOINTS.version > after)
            page = list(self._connection.scalars(chosen.order_by(CHECKPOINTS.version).limit(limit)))
            if not page:
                return
            after = page[-1]
            found = manifest_rows.bare if bare else manifest_rows.some
            yield from filter(self.is_free, found(self._connection, self._store, page))

    def get(self, versions: Iterable[int]) -> list[Checkpoint]:
        """Return those of some versions that are complete, oldest first."""
        return [
            one
            for one in manifest_rows.some(self._connection, self._store, versions)
            if one.state == "complete" and one.run == self._run
        ]

    def unsure(self, is_sure: IsSure, after: int, upto: int | None) -> Iterator[Checkpoint]:
        """Yield those in a span of versions that are not kept for certain, oldest first, without their metrics."""
        while page := self._glimpses(after, upto):
            after = page[-1].version
            wanted = [one.version for one in page if not is_sure(one)]
            for begin in range(0, len(wanted), _JUDGED_AT_ONCE):
                part = wanted[begin : begin + _JUDGED_AT_ONCE]
                yield from manifest_rows.bare(self._connection, self._store, part)

    def _glimpses(self, after: int, upto: int | None) -> list[Glimpse]:
        chosen = select(
            CHECKPOINTS.version,
            CHECKPOINTS.epoch,
            CHECKPOINTS.batch,
            CHECKPOINTS.step,
            CHECKPOINTS.created_at,
        ).where(*self._here, CHECKPOINTS.version > after)
        if upto is not None:
            chosen = chosen.where(CHECKPOINTS.version <= upto)
        chosen = chosen.order_by(CHECKPOINTS.version).limit(_SEEN_AT_ONCE)
        rows = list(queries.plain(self._connection, chosen))
        if not rows:
            return []
        tagged = set(
            self._connection.scalars(
                select(TAGS.version).where(TAGS.version.between(rows[0][0], rows[-1][0]))
            )
        )
        return [
            Glimpse(version, epoch, batch, step, datetime.fromisoformat(at), version in tagged)
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
        shown = select(PUBLISHED.path, PUBLISHED.pending).where(PUBLISHED.version == version)
        return any(self._is_shown(path, pending) for path, pending in self._connection.execute(shown))

    @cached_property
    def _all_shown(self) -> set[int]:
        rows = self._connection.execute(select(PUBLISHED.version, PUBLISHED.path, PUBLISHED.pending))
        return {version for version, path, pending in rows if self._is_shown(path, pending)}

    def _places(self) -> Select[int, str, int]:
        return select(CHECKPOINTS.version, CHECKPOINTS.file, CHECKPOINTS.nbytes).where(*self._here)

    def _whole(self, chosen: Select[int, str, int], limit: int) -> list[int]:
        found: list[int] = []
        with self._connection.execute(chosen) as rows:
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
        key = (what, limit, *which)
        if key not in self._memory:
            if len(self._memory) >= _MEMORY:
                self._memory.clear()
            self._memory[key] = find()
        return self._memory[key]
