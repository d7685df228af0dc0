"""The part of a manifest that is searched: by conditions, in an order, a page at a time; and a run's history."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, not_, or_, select

from ckptstore.manifest import checkpoints
from ckptstore.manifest import epochs as history
from ckptstore.manifest import statements as queries
from ckptstore.manifest.checkpoints import Slim
from ckptstore.manifest.conditions import (
    Absent,
    Compared,
    Condition,
    Field,
    Joined,
    Metric,
    Not,
    OneOf,
    Tagged,
    Term,
)
from ckptstore.manifest.statements import id_of_metric, id_of_run
from ckptstore.manifest.tables import CHECKPOINTS, COMPLETE, METRICS, RUNS, TAGS
from ckptstore.manifest.transactions import Transactions
from ckptstore.records import Checkpoint, Epoch, Mode, Resumed, State

COMPLETE_ONLY: tuple[State, ...] = ("complete",)
_PAGE = 500
_EPOCHS = 2000  # of a page: smaller than checkpoints


class ManifestAsking:
    """The part of `ckptstore.manifest.manifest.Manifest` that finds many checkpoints."""

    _store: Path
    _transactions: Transactions

    def checkpoints(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> list[Checkpoint]:
        """Return the checkpoints of a run, or all, oldest first, in a constant number of queries.

        Args:
            run: The run; None for all.
            states: Which states; None for all.
        """
        with self._transactions.reading() as connection:
            return checkpoints.many(connection, self._store, run, states)

    def walk(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[Checkpoint]:
        """Yield the checkpoints of a run, or all, oldest first, a page at a time, each in a transaction of its own."""
        return (one.full(self._store) for page in self.pages(run, states=states) for one in page)

    def pages(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[list[Slim]]:
        """Yield the pages that `walk` makes checkpoints of, likewise."""
        after = 0
        while True:
            with self._transactions.reading() as connection:
                page = checkpoints.page(connection, run, states, after)
            if not page:
                return
            yield page
            after = page[-1].version

    def search(
        self,
        run: str | None = None,
        *,
        states: Collection[State] | None = COMPLETE_ONLY,
        where: Condition | None = None,
        order: tuple[Term, bool] | None = None,
        limit: int | None = None,
    ) -> Iterator[Checkpoint]:
        """Yield what `ckptstore.manifest.search.matching` finds, a page at a time.

        Only the versions are found out at once, 8 bytes for each; what goes meanwhile is left out.
        """
        chosen = matching(run=run, states=states, where=where, order=order, limit=limit)
        with self._transactions.reading() as connection:
            versions = array("q", connection.scalars(chosen.execution_options(yield_per=10_000)))
        for begin in range(0, len(versions), _PAGE):
            wanted = versions[begin : begin + _PAGE]
            with self._transactions.reading() as connection:
                found = {one.version: one for one in checkpoints.some(connection, self._store, wanted)}
            yield from (found[version] for version in wanted if version in found)

    def ranked(self, metric: str, mode: Mode, run: str | None = None, *, limit: int) -> list[Checkpoint]:
        """Return the best complete checkpoints by a metric, best first, of equals the earlier; NaN is none."""
        with self._transactions.reading() as connection:
            versions = list(islice(queries.ranked_versions(connection, metric, mode, run), limit))
            found = {one.version: one for one in checkpoints.some(connection, self._store, versions)}
        return [found[version] for version in versions]

    def versions(self, run: str) -> array[int]:
        """Return the versions of a run's checkpoints, in whatever state."""
        chosen = select(CHECKPOINTS.version).where(CHECKPOINTS.run_id == queries.id_of_run(run))
        with self._transactions.reading() as connection:
            return array("q", connection.scalars(chosen.execution_options(yield_per=10_000)))

    def saved_at(self, run: str, moment: datetime) -> Checkpoint | None:
        """Return the newest complete checkpoint of a run whose save began at a moment, or None."""
        chosen = select(CHECKPOINTS.version).where(
            CHECKPOINTS.run_id == queries.id_of_run(run),
            CHECKPOINTS.state == COMPLETE,
            CHECKPOINTS.created_at == moment,
        )
        with self._transactions.reading() as connection:
            newest = chosen.order_by(CHECKPOINTS.version.desc()).limit(1)
            return checkpoints.one(connection, self._store, newest)

    def count(self, run: str) -> int:
        """Return how many complete checkpoints a run has."""
        counted = select(func.count()).where(
            CHECKPOINTS.run_id == queries.id_of_run(run), CHECKPOINTS.state == COMPLETE
        )
        with self._transactions.reading() as connection:
            return int(connection.execute(counted).scalar_one())

    def epochs(self, run: str) -> Iterator[Epoch]:
        """Yield what is known of the epochs of a run's newest attempt, in order, a page at a time."""
        after = -1
        while True:
            with self._transactions.reading() as connection:
                page = history.epochs(connection, run, after, _EPOCHS)
            if not page:
                return
            yield from page
            after = page[-1].epoch

    def epochs_of(self, run: str) -> tuple[int, datetime | None]:
        """Return how many epochs of a run's newest attempt are known, and when the first was saved."""
        with self._transactions.reading() as connection:
            return history.epochs_of(connection, run)

    def resumes(self, run: str) -> list[Resumed]:
        """Return from where a run's newest attempt was gone on with, oldest first."""
        with self._transactions.reading() as connection:
            return history.resumes(connection, run)


_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def matching(
    *,
    run: str | None,
    states: Collection[State] | None,
    where: Condition | None,
    order: tuple[Term, bool] | None,
    limit: int | None,
) -> Select[Any]:
    """Return the statement for the versions of what is asked for.

    Args:
        run: The run; None for all.
        states: Which states; None for all.
        where: A condition; None for none.
        order: What to sort by, and whether the greatest comes first; what lacks it comes last, and of equals the
            lower version first. None for the lowest version first.
        limit: At most so many.
    """
    chosen = select(CHECKPOINTS.version)
    if run is not None:
        chosen = chosen.where(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        chosen = chosen.where(CHECKPOINTS.state.in_(sorted(states)))
    if where is not None:
        chosen = chosen.where(_met(where))
    if order is not None:
        term, descending = order
        if term == Field("version"):
            return chosen.order_by(CHECKPOINTS.version.desc() if descending else CHECKPOINTS.version).limit(
                limit
            )
        value = _column(term)
        chosen = chosen.order_by(value.is_(None), value.desc() if descending else value)
    return chosen.order_by(CHECKPOINTS.version).limit(limit)


def _met(condition: Condition) -> ColumnElement[bool]:
    match condition:
        case Joined(parts=parts, every=every):
            return (and_ if every else or_)(*map(_met, parts))
        case Not(part=part):
            return not_(_met(part))
        case Tagged(name=name):
            return exists().where(TAGS.version == CHECKPOINTS.version, TAGS.name == name)
        case Absent(term=term):
            return _column(term).is_(None)
        case OneOf(term=term, values=values):
            return _column(term).in_(list(values)) if values else false()
        case Compared(left=left, operator=sign, right=right):
            other = _column(right) if isinstance(right, Field | Metric) else right
            return _COMPARE[sign](_column(left), other)


def _column(term: Term) -> ColumnElement[Any]:
    if isinstance(term, Metric):
        value = select(METRICS.value).where(
            METRICS.version == CHECKPOINTS.version, METRICS.metric_id == id_of_metric(term.name)
        )
        return value.correlate(CHECKPOINTS.table).scalar_subquery()
    if term.name == "run":
        return (
            select(RUNS.name)
            .where(RUNS.id == CHECKPOINTS.run_id)
            .correlate(CHECKPOINTS.table)
            .scalar_subquery()
        )
    column: ColumnElement[Any] = CHECKPOINTS.table.c[term.name]
    return column
