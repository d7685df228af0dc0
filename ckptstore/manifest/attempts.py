"""Attempts at runs: a run that is begun anew beside the checkpoints that it has, to which a resume never goes back.

An event of the kind ``"began"`` marks where an attempt begins: its version is the next one that the store would have
given out, so that nothing saved before belongs to the attempt; its detail has the attempt's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, exists, select

from ckptstore.errors import CorruptManifestError
from ckptstore.manifest import checkpoint_writes as changes
from ckptstore.manifest.statements import BEGAN, RUN, first_version, id_of_run
from ckptstore.manifest.tables import EVENTS, STORE
from ckptstore.manifest.transactions import Transactions

NUMBER = "attempt"

# Built once: each save asks for its attempt.
_BEGUN = (
    select(EVENTS.version, EVENTS.detail)
    .where(EVENTS.kind == BEGAN, EVENTS.run_id == id_of_run(RUN))
    .order_by(EVENTS.id.desc())
)


def note(connection: Connection, run: str, number: int, first: int, **detail: Any) -> None:
    """Append the event that an attempt began at a version."""
    changes.add_event(connection, BEGAN, run=run, version=first, detail={**detail, NUMBER: number})


class ManifestAttempts:
    """The part of `ckptstore.manifest.manifest.Manifest` that knows attempts."""

    path: Path
    _transactions: Transactions

    def begin_attempt(self, run: str, detail: Mapping[str, Any] | None = None) -> int:
        """Begin a run anew, and return the attempt's number; makes the run if there is none.

        It is 1 for a run in which nothing was begun or saved yet, else one more than before.

        Args:
            run: The run.
            detail: What the event says beyond the attempt's number.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("begin_attempt") as connection:
            last = self._newest(connection, run, None)
            if last is None:
                last = int(_has_saved(connection, run))
            first = connection.execute(select(STORE.next_version)).scalar_one()
            note(connection, run, last + 1, first, **(detail or {}))
        return last + 1

    def note_attempt(self, run: str, number: int, first: int) -> None:
        """Note an attempt that a payload tells of, from version `first` on, unless the run has come so far."""
        with self._transactions.writing("note_attempt") as connection:
            changes.run_id(connection, run)  # makes the run
            if number > (self._newest(connection, run, None) or 1):
                note(connection, run, number, first)

    def attempt(self, run: str, version: int | None = None) -> int:
        """Return the number of a run's newest attempt, or of the one that a version belongs to; the first is 1."""
        with self._transactions.reading() as connection:
            return self._newest(connection, run, version) or 1

    def attempt_floor(self, run: str) -> int:
        """Return the least version that may belong to a run's newest attempt; 1 where it never began anew."""
        with self._transactions.reading() as connection:
            return int(connection.execute(select(first_version(id_of_run(run)))).scalar_one())

    def _newest(self, connection: Connection, run: str, version: int | None) -> int | None:
        """Return the number of the newest attempt that is noted, not later than a version; None where none is."""
        try:
            for first, detail in connection.execute(_BEGUN, {"run": run}):
                if version is None or first <= version:
                    return _number(detail)
        except (ValueError, TypeError) as error:
            reason = f"it holds an unreadable attempt: {error}"
            raise CorruptManifestError(path=self.path, reason=reason) from error
        return None


def _number(detail: Mapping[str, Any] | None) -> int:
    number = (detail or {}).get(NUMBER)
    if type(number) is not int or number < 1:
        raise ValueError(f"{NUMBER} is {number!r}")
    return number


def _has_saved(connection: Connection, run: str) -> bool:
    saved = exists().where(EVENTS.kind.in_(("saved", "adopted")), EVENTS.run_id == id_of_run(run))
    return bool(connection.execute(select(saved)).scalar_one())
