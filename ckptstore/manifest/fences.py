"""Fencing tokens: of two writers of one run, the older one's commits are refused.

The lock of a run keeps a second writer out, but the lock's file may be removed, or the file system may have no
locks. So each process that becomes the writer of a run draws a token, and records it in the same transaction as itself.
Every later transaction that writes rows of the run first compares the token: it costs one query, and no transaction.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from ckptstore.errors import RunTakenOverError, StoreRemovedError
from ckptstore.records import Claim

# Given to the driver as it is: it comes before every change, and SQLAlchemy takes longer than SQLite does.
_WRITER = """
SELECT store.uuid, writers.token, runs.holder_host, runs.holder_pid, runs.holder_started_at
FROM store LEFT JOIN runs ON runs.name = ? LEFT JOIN writers ON writers.run_id = runs.id
"""


class Fences:
    """The claims that one open manifest writes under, by run.

    Args:
        store: The store's directory, for errors.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._claims: dict[str, Claim] = {}

    def hold(self, claim: Claim) -> None:
        """Write the run of a claim under it from now on."""
        self._claims[claim.run] = claim

    def check(self, connection: Connection, run: str) -> None:
        """Refuse to write a run whose claim here is no longer the newest; does nothing for a run without a claim.

        Args:
            connection: In the transaction that is about to write.
            run: The run.

        Raises:
            RunTakenOverError: Another process has become the run's writer since.
            StoreRemovedError: The manifest is another store's, or an older copy without the claim.
        """
        claim = self._claims.get(run)
        if claim is None:
            return
        found = connection.exec_driver_sql(_WRITER, (run,)).first()
        if found is not None and (found.uuid, found.token) == (claim.store, claim.token):
            return
        if found is None or found.uuid != claim.store or found.token is None:
            raise StoreRemovedError(store=self._store, reason="another manifest was put in its place")
        raise RunTakenOverError(
            run=run,
            store=self._store,
            host=found.holder_host,
            pid=found.holder_pid,
            started_at=None
            if found.holder_started_at is None
            else datetime.fromisoformat(found.holder_started_at),
        )
