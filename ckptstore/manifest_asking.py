"""The part of a manifest that is searched: by conditions, in an order, a page at a time; and a run's history."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from sqlalchemy import func, select

from ckptstore import manifest_history as history
from ckptstore import manifest_queries as queries
from ckptstore import manifest_rows
from ckptstore.conditions import Condition, Term
from ckptstore.manifest_search import matching
from ckptstore.manifest_transactions import Transactions
from ckptstore.models import CHECKPOINTS, COMPLETE
from ckptstore.records import Checkpoint, Epoch, Mode, Resumed, State

COMPLETE_ONLY: tuple[State, ...] = ("complete",)
_PAGE = 500
_EPOCHS = 2000  # of a page: smaller than checkpoints


class ManifestAsking:
    """The part of `ckptstore.manifest.Manifest` that finds many checkpoints."""

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
            return manifest_rows.many(connection, self._store, run, states)

    def walk(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[Checkpoint]:
        """Yield the checkpoints of a run, or all, oldest first, a page at a time, each in a transaction of its own."""
        return (one.full(self._store) for page in self.pages(run, states=states) for one in page)

    def pages(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[list[manifest_rows.Slim]]:
        """Yield the pages that `walk` makes checkpoints of, likewise."""
        after = 0
        while True:
            with self._transactions.reading() as connection:
                page = manifest_rows.page(connection, run, states, after)
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
        """Yield what `ckptstore.manifest_search.matching` finds, a page at a time.

        Only the versions are found out at once, 8 bytes for each; what goes meanwhile is left out.
        """
        chosen = matching(run=run, states=states, where=where, order=order, limit=limit)
        with self._transactions.reading() as connection:
            versions = array("q", connection.scalars(chosen.execution_options(yield_per=10_000)))
        for begin in range(0, len(versions), _PAGE):
            wanted = versions[begin : begin + _PAGE]
            with self._transactions.reading() as connection:
                found = {one.version: one for one in manifest_rows.some(connection, self._store, wanted)}
            yield from (found[version] for version in wanted if version in found)

    def ranked(self, metric: str, mode: Mode, run: str | None = None, *, limit: int) -> list[Checkpoint]:
        """Return the best complete checkpoints by a metric, best first, of equals the earlier; NaN is none."""
        with self._transactions.reading() as connection:
            versions = list(islice(queries.ranked_versions(connection, metric, mode, run), limit))
            found = {one.version: one for one in manifest_rows.some(connection, self._store, versions)}
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
            return manifest_rows.one(connection, self._store, newest)

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
