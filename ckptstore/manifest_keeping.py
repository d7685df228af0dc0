"""The part of a manifest that retention reads and changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, select

from ckptstore import manifest_changes as changes
from ckptstore.manifest_queries import id_of_run
from ckptstore.manifest_retention import IsWhole, RunRows
from ckptstore.manifest_transactions import Transactions
from ckptstore.models import EVENTS
from ckptstore.records import Checkpoint, Judged


class ManifestKeeping:
    """The part of `ckptstore.manifest.Manifest` that retention uses."""

    _store: Path
    _transactions: Transactions

    @contextmanager
    def rows_of(
        self, run: str, *, is_whole: IsWhole, is_shown: Callable[[str, bool], bool]
    ) -> Iterator[RunRows]:
        """Give one run's checkpoints as retention looks at them, inside a transaction.

        Args:
            run: The run.
            is_whole: Whether a payload is there with its size.
            is_shown: Whether a published path, which may be pending, still shows something.
        """
        with self._transactions.reading() as connection:
            yield RunRows(connection, self._store, run, is_whole=is_whole, is_shown=is_shown)

    def last_event(self) -> int:
        """Return the number of the newest event."""
        with self._transactions.reading() as connection:
            return int(connection.execute(select(func.max(EVENTS.id))).scalar() or 0)

    def resumed_from(self, run: str) -> int | None:
        """Return the version that a run was resumed from last, or None where it never was."""
        with self._transactions.reading() as connection:
            resumed = select(EVENTS.version).where(EVENTS.kind == "resumed", EVENTS.run_id == id_of_run(run))
            version: int | None = connection.scalar(resumed.order_by(EVENTS.id.desc()).limit(1))
            return version

    def let_go(self, run: str, gone: Sequence[Checkpoint], judged: Judged | None) -> None:
        """Mark checkpoints for deletion and note how far retention has come, all at once.

        Args:
            run: The run.
            gone: Its checkpoints that go.
            judged: What to note; None to note nothing, and forget what was noted.
        """
        versions = [checkpoint.version for checkpoint in gone]
        with self._transactions.writing("retention") as connection:
            changes.set_state(connection, versions, "deleting")
            if versions:
                changes.add_event(connection, "pruned", run=run, detail={"versions": versions})
            if judged is not None:
                changes.note_retention(connection, run, judged.to_row())
