"""The part of a manifest that retention reads and changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select

from ckptstore.manifest import checkpoint_writes as changes
from ckptstore.manifest.statements import id_of_run
from ckptstore.manifest.tables import EVENTS
from ckptstore.manifest.transactions import Transactions
from ckptstore.records import Checkpoint, Judged

if TYPE_CHECKING:
    from ckptstore.manifest.run_view import IsWhole, RunRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a policy says of a run.

    Attributes:
        expired: Its checkpoints that go.
        judged: How far retention has come with that; None to note nothing, and forget what was noted.
    """

    expired: Sequence[Checkpoint]
    judged: Judged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How a run is looked at, and by what.

    Attributes:
        judge: Tells what goes; None where nothing is to be changed or noted.
        is_whole: Whether a payload is there with its size.
        is_shown: Whether a published path, which may be pending, still shows something.
    """

    judge: Callable[[RunRows], Verdict | None]
    is_whole: IsWhole
    is_shown: Callable[[str, bool], bool]


class ManifestKeeping:
    """The part of `ckptstore.manifest.manifest.Manifest` that retention uses."""

    _store: Path
    _transactions: Transactions

    def judge(self, run: str, judging: Judging) -> list[Checkpoint]:
        """Look at a run, mark what a policy lets go and note that, all at once; returns what goes."""
        with self._transactions.writing("retention") as connection:
            return carry_out(connection, self._store, run, judging)

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

    def let_go(self, run: str, versions: Sequence[int]) -> None:
        """Mark checkpoints of a run for deletion, and forget how far retention had come, all at once."""
        with self._transactions.writing("retention") as connection:
            _mark(connection, changes.run_id(connection, run), versions, None)


def carry_out(
    connection: Connection, store: Path, run: str, judging: Judging, known: Checkpoint | None = None
) -> list[Checkpoint]:
    """Judge a run inside the caller's transaction, and mark what goes; `known` is what was read of it just now."""
    from ckptstore.manifest.run_view import RunRows  # a query can do without

    view = RunRows(connection, store, run, is_whole=judging.is_whole, is_shown=judging.is_shown, known=known)
    verdict = judging.judge(view)
    if verdict is None:
        return []
    run_id = changes.run_id(connection, run) if view.run_id is None else view.run_id
    _mark(connection, run_id, [checkpoint.version for checkpoint in verdict.expired], verdict.judged)
    return list(verdict.expired)


def _mark(connection: Connection, run_id: int, versions: Sequence[int], judged: Judged | None) -> None:
    changes.let_go(connection, run_id, versions)
    if judged is not None:
        changes.note_retention(connection, run_id, judged.to_row())
    elif versions:
        changes.forget_retention(connection, run_id)
