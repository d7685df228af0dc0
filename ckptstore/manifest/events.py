"""Events: what happened to the store, to runs and to checkpoints, in order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, exists, func, insert, select

from ckptstore.manifest.runs.runs import run_id
from ckptstore.manifest.statements import WHICH, first_version_of_beginning, id_of_run
from ckptstore.manifest.tables import CHECKPOINTS, EVENTS, RUNS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import FINISHED, Event, Resumed

RUN_OF_CHECKPOINT = select(CHECKPOINTS.run_id).where(CHECKPOINTS.version == WHICH)
_ADD = insert(EVENTS.table)
_OTHER = EVENTS.table.alias("other")


def add_event(
    connection: Connection,
    kind: str,
    *,
    run: str | None = None,
    version: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; without a run, it belongs to the run of its checkpoint, if that is there."""
    id_: int | None = None
    if run is not None:
        id_ = run_id(connection, run)
    elif version is not None:
        id_ = connection.execute(RUN_OF_CHECKPOINT, {"which": version}).scalar()
    append_event(connection, kind, run_id=id_, version=version, detail=detail)


def append_event(
    connection: Connection,
    kind: str,
    *,
    run_id: int | None,
    version: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event of a run whose id is known."""
    row = {"at": datetime.now(UTC), "kind": kind, "run_id": run_id, "version": version, "detail": detail}
    connection.execute(_ADD, row)


class Events(Repository):
    """The events of a manifest."""

    def add(
        self,
        kind: str,
        *,
        run: str | None = None,
        version: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an event; makes the run if there is none.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("add_event", run=run) as connection:
            add_event(connection, kind, run=run, version=version, detail=detail)

    def find(
        self,
        *,
        kind: str | None = None,
        run: str | None = None,
        version: int | None = None,
        limit: int | None = None,
    ) -> list[Event]:
        """Return events, newest first: those of a kind, of a run, of a version, and at most `limit`."""
        chosen = select(
            EVENTS.at, EVENTS.kind, RUNS.name.label("run"), EVENTS.version, EVENTS.detail
        ).join_from(EVENTS.table, RUNS.table, RUNS.id == EVENTS.run_id, isouter=True)
        if kind is not None:
            chosen = chosen.where(EVENTS.kind == kind)
        if run is not None:
            chosen = chosen.where(EVENTS.run_id == id_of_run(run))
        if version is not None:
            chosen = chosen.where(EVENTS.version == version)
        with self._transactions.reading() as connection:
            rows = connection.execute(chosen.order_by(EVENTS.id.desc()).limit(limit))
            return [Event(**row._asdict()) for row in rows]

    def saves(self, run: str, *, since: datetime | None, limit: int) -> list[tuple[datetime, float | None]]:
        """Return the times of a run's last saves, newest first, each with the seconds that its training waited.

        The seconds are None where they are not known, or the checkpoint has been removed.

        Args:
            run: The run.
            since: Saves before this time are left out; None for all.
            limit: The most to return.
        """
        chosen = (
            select(EVENTS.at, CHECKPOINTS.blocked_s)
            .join_from(EVENTS.table, CHECKPOINTS.table, CHECKPOINTS.version == EVENTS.version, isouter=True)
            .where(EVENTS.kind == "saved", EVENTS.run_id == id_of_run(run))
        )
        if since is not None:
            chosen = chosen.where(EVENTS.at >= since)
        with self._transactions.reading() as connection:
            rows = connection.execute(chosen.order_by(EVENTS.id.desc()).limit(limit))
            return [(at, blocked_s) for at, blocked_s in rows]

    def last_id(self) -> int:
        """Return the number of the newest event; 0 where there is none."""
        with self._transactions.reading() as connection:
            return int(connection.execute(select(func.max(EVENTS.id))).scalar() or 0)

    def acknowledged_losses(self) -> set[int]:
        """Return the checkpoints whose loss a repair has recorded, and that no later event reports found or lost."""
        kinds = ("repaired", "found", "missing", "damaged")
        newest = select(func.max(EVENTS.id)).where(EVENTS.kind.in_(kinds)).group_by(EVENTS.version)
        repaired = select(EVENTS.version).where(EVENTS.kind == "repaired", EVENTS.id.in_(newest))
        with self._transactions.reading() as connection:
            return {version for version in connection.scalars(repaired) if version is not None}

    def resumes(self, run: str) -> list[Resumed]:
        """Return where a run's newest beginning was resumed, oldest first."""
        finished = exists().where(_OTHER.c.kind == FINISHED, _OTHER.c.version == EVENTS.version)
        chosen = select(EVENTS.at, EVENTS.version, EVENTS.detail, finished).where(
            EVENTS.kind == "resumed",
            EVENTS.run_id == id_of_run(run),
            EVENTS.version >= first_version_of_beginning(id_of_run(run)),
        )
        found = []
        with self._transactions.reading() as connection:
            for at, version, detail, was_finished in connection.execute(chosen.order_by(EVENTS.id)):
                where = detail or {}
                if version is not None and isinstance(where.get("epoch"), int):
                    found.append(
                        Resumed(
                            at=at,
                            version=version,
                            epoch=where["epoch"],
                            batch=where.get("batch"),
                            interrupted=not was_finished,
                        )
                    )
        return found

    def last_resumed(self, run: str) -> int | None:
        """Return the version that a run was resumed from last, or None where it never was."""
        resumed = select(EVENTS.version).where(EVENTS.kind == "resumed", EVENTS.run_id == id_of_run(run))
        with self._transactions.reading() as connection:
            version: int | None = connection.scalar(resumed.order_by(EVENTS.id.desc()).limit(1))
            return version

    def resumes_without_progress(self, run: str | None = None) -> dict[int, int]:
        """Return how often each checkpoint was resumed from since a run, or any, last saved something or ended well.

        Checkpoints of a run's earlier beginnings are left out.
        """
        saved = select(func.max(EVENTS.id)).where(EVENTS.kind.in_(("saved", "adopted", "ended")))
        resumed = select(EVENTS.version, func.count()).where(EVENTS.kind == "resuming")
        if run is not None:
            saved = saved.where(EVENTS.run_id == id_of_run(run))
            resumed = resumed.where(EVENTS.run_id == id_of_run(run))
        since = func.coalesce(saved.correlate(None).scalar_subquery(), 0)
        resumed = resumed.where(
            EVENTS.id > since, EVENTS.version >= first_version_of_beginning(EVENTS.run_id)
        )
        with self._transactions.reading() as connection:
            rows = connection.execute(resumed.group_by(EVENTS.version))
            return {version: count for version, count in rows if version is not None}
