"""Attempts: the processes that trained each run, and how each ended.

A run's owner begins an attempt and ends it; a supervisor adds what only it can see. An attempt that was killed stays
open until somebody records its end by evidence.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from ckptstore.errors import InvalidArgumentError
from ckptstore.manifest.runs.runs import run_id
from ckptstore.manifest.statements import RUN, id_of_run
from ckptstore.manifest.tables import ATTEMPTS, RUNS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import END_REASONS, Attempt, AttemptEnd, EndReason, NewAttempt, OpenAttempt
from ckptstore.storage.layout import log_file

# What may be added to an attempt after its begin.
Fact = Literal[
    "git_commit", "git_dirty", "versions", "devices", "resumed_from", "batches_lost", "log", "diff", "detail"
]
_PATHS = ("log", "diff")
_IS_OPEN = ATTEMPTS.reason.is_(None)
_LAST = select(func.max(ATTEMPTS.attempt)).where(ATTEMPTS.run_id == id_of_run(RUN))
_COLUMNS = tuple(field.name for field in fields(Attempt) if field.name != "run")


class Attempts(Repository):
    """The attempts at the runs of a manifest."""

    def begin(
        self,
        new: NewAttempt,
        *,
        ends: Mapping[int, AttemptEnd] = MappingProxyType({}),
        has_own_log: bool = False,
        at_least: int = 1,
    ) -> int:
        """Record that an attempt begins, and return its number; makes the run if there is none.

        Args:
            new: What is known of it.
            ends: Ends of the run's earlier attempts, by their numbers, of which none is recorded.
            has_own_log: True if its log is going to be the one that belongs to its number.
            at_least: The lowest number that it may have.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("begin_attempt", run=new.run) as connection:
            id_ = run_id(connection, new.run)
            for number, end in ends.items():
                self._end(connection, new.run, number, end, overwrite=False)
            last = connection.execute(_LAST, {"run": new.run}).scalar() or 0
            number = max(int(last) + 1, at_least)
            values = {
                field.name: getattr(new, field.name)
                for field in fields(new)
                if field.name not in ("run", *_PATHS)
            }
            log = log_file(new.run, number) if has_own_log else _file_of(new.log, self._store)
            connection.execute(
                insert(ATTEMPTS.table).values(
                    run_id=id_, attempt=number, log=log, diff=_file_of(new.diff, self._store), **values
                )
            )
        return number

    def add_facts(self, run: str, number: int, facts: Mapping[Fact, Any]) -> None:
        """Add to an attempt what was not known when it began; `detail` is added to the detail that is there.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("add_facts", run=run) as connection:
            self.add_facts_in(connection, run, number, facts)

    def add_facts_in(self, connection: Connection, run: str, number: int, facts: Mapping[Fact, Any]) -> None:
        """Add facts as `add_facts` does, in a transaction of the caller's."""
        values: dict[str, Any] = {str(name): value for name, value in facts.items()}
        for name in _PATHS:
            if name in values:
                values[name] = _file_of(values[name], self._store)
        if "detail" in values:
            before = connection.execute(select(ATTEMPTS.detail).where(*_is(run, number))).scalar()
            values["detail"] = {**(before or {}), **values["detail"]}
        if values:
            connection.execute(update(ATTEMPTS.table).where(*_is(run, number)).values(values))

    def end(
        self,
        run: str,
        number: int,
        *,
        reason: EndReason,
        ended_at: datetime | None = None,
        exit_code: int | None = None,
        signal: str | None = None,
        detail: Mapping[str, Any] = MappingProxyType({}),
        overwrite: bool = False,
        facts: Mapping[Fact, Any] = MappingProxyType({}),
    ) -> bool:
        """Record how an attempt ended.

        Where an end is recorded already, what is not known of it is added: exit code, signal and detail.

        Args:
            run: The run.
            number: The attempt's number.
            reason: Probable reason of its end.
            ended_at: When it ended, aware; None for now.
            exit_code: Exit code of the process, or None.
            signal: Name of the signal that ended it, or None.
            detail: Added to its detail.
            overwrite: True to replace the reason and the time that are recorded.
            facts: As for `add_facts`.

        Returns:
            True if the attempt's reason is the given one now.

        Raises:
            InvalidArgumentError: `detail` is not JSON, or the reason is not one of `END_REASONS`.
        """
        if reason not in END_REASONS:
            raise InvalidArgumentError(
                argument="reason", value=reason, reason=f"must be one of {', '.join(END_REASONS)}"
            )
        end = AttemptEnd(
            reason=reason,
            ended_at=ended_at or datetime.now(UTC),
            exit_code=exit_code,
            signal=signal,
            detail=detail,
        )
        with self._transactions.writing("end_attempt", run=run) as connection:
            self.add_facts_in(connection, run, number, facts)
            return self._end(connection, run, number, end, overwrite=overwrite)

    def _end(
        self, connection: Connection, run: str, number: int, end: AttemptEnd, *, overwrite: bool
    ) -> bool:
        chosen = select(
            ATTEMPTS.started_at, ATTEMPTS.reason, ATTEMPTS.exit_code, ATTEMPTS.signal, ATTEMPTS.detail
        )
        row = connection.execute(chosen.where(*_is(run, number))).one_or_none()
        if row is None:
            return False
        values: dict[str, Any] = {"detail": {**row.detail, **end.detail}}
        is_new = overwrite or row.reason is None
        if is_new:
            # A clock that was set back makes no attempt end before it began.
            values |= {"reason": end.reason, "ended_at": max(end.ended_at, row.started_at)}
        for name in ("exit_code", "signal"):
            given = getattr(end, name)
            if given is not None and (is_new or getattr(row, name) is None):
                values[name] = given
        connection.execute(update(ATTEMPTS.table).where(*_is(run, number)).values(values))
        return is_new or row.reason == end.reason

    # --- reading -------------------------------------------------------------------------------------

    def of_run(self, run: str | None = None) -> list[Attempt]:
        """Return the attempts at a run, or at all, in the order in which they began.

        Those at one run are in the order of their numbers, even if a clock was set back; those at all, in that of time.
        """
        chosen = _chosen() if run is None else _chosen().where(ATTEMPTS.run_id == id_of_run(run))
        with self._transactions.reading() as connection:
            rows = connection.execute(chosen.order_by(*_order(run)))
            return [attempt_of(row, self._store) for row in rows]

    def last(self, run: str) -> Attempt | None:
        """Return the newest attempt at a run, or None where there is none."""
        chosen = _chosen().where(ATTEMPTS.run_id == id_of_run(run)).order_by(ATTEMPTS.attempt.desc()).limit(1)
        with self._transactions.reading() as connection:
            row = connection.execute(chosen).one_or_none()
            return None if row is None else attempt_of(row, self._store)

    def counts(self) -> dict[str, int]:
        """Return how many attempts each run has; runs without one are left out."""
        with self._transactions.reading() as connection:
            return counts_in(connection)

    def open_attempts(self, run: str | None = None) -> list[OpenAttempt]:
        """Return the attempts at a run, or at all, whose end is not recorded, in the order in which they began."""
        chosen = _chosen(ATTEMPTS.boot_id, ATTEMPTS.oom_kills).where(_IS_OPEN)
        if run is not None:
            chosen = chosen.where(ATTEMPTS.run_id == id_of_run(run))
        with self._transactions.reading() as connection:
            rows = connection.execute(chosen.order_by(*_order(run)))
            return [
                OpenAttempt(
                    attempt=attempt_of(row, self._store), boot_id=row.boot_id, oom_kills=row.oom_kills
                )
                for row in rows
            ]


def attempt_of(row: Row[Any], store: Path) -> Attempt:
    """Return the attempt of a row of `_chosen`."""
    values = {name: getattr(row, name) for name in _COLUMNS}
    for name in _PATHS:
        if values[name] is not None:
            values[name] = Path(os.path.normpath(store / values[name]))
    values["reason"] = cast(EndReason | None, values["reason"])
    return Attempt(run=row.run, **values)


def counts_in(connection: Connection) -> dict[str, int]:
    """Return what `Attempts.counts` does, in a transaction of the caller's."""
    counted = select(RUNS.name, func.count()).join_from(
        ATTEMPTS.table, RUNS.table, RUNS.id == ATTEMPTS.run_id
    )
    return {row[0]: row[1] for row in connection.execute(counted.group_by(RUNS.name))}


def last_of_each(connection: Connection, store: Path) -> dict[str, Attempt]:
    """Return the newest attempt at each run that has one, in one query."""
    return {row.run: attempt_of(row, store) for row in connection.execute(_LAST_OF_EACH)}


def insert_attempts(connection: Connection, attempts: Collection[Attempt], store: Path) -> None:
    """Insert attempts of another manifest of the same store, with their numbers."""
    for attempt in attempts:
        values: dict[str, Any] = {name: getattr(attempt, name) for name in _COLUMNS}
        for name in _PATHS:
            values[name] = _file_of(values[name], store)
        connection.execute(insert(ATTEMPTS.table).values(run_id=run_id(connection, attempt.run), **values))


def _file_of(path: Path | None, store: Path) -> str | None:
    """Return a path relative to the store if it lies in it, so that the store may be moved."""
    if path is None:
        return None
    return str(path.relative_to(store) if path.is_relative_to(store) else path)


def _chosen(*more: Any) -> Select[Any]:
    columns = [getattr(ATTEMPTS, name) for name in _COLUMNS]
    return select(RUNS.name.label("run"), *columns, *more).join_from(
        ATTEMPTS.table, RUNS.table, RUNS.id == ATTEMPTS.run_id
    )


_OTHER = ATTEMPTS.table.alias("other")
_LAST_OF_EACH = _chosen().where(
    ATTEMPTS.attempt
    == select(func.max(_OTHER.c.attempt)).where(_OTHER.c.run_id == ATTEMPTS.run_id).scalar_subquery()
)


def _order(run: str | None) -> tuple[Any, ...]:
    return (ATTEMPTS.attempt,) if run is not None else (ATTEMPTS.started_at, ATTEMPTS.attempt)


def _is(run: str, number: int) -> tuple[Any, ...]:
    return ATTEMPTS.run_id == id_of_run(run), ATTEMPTS.attempt == number
