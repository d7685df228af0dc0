"""Beginnings of runs: where a run was started from scratch; it keeps earlier checkpoints, but never resumes from them.

An event of the kind ``"began"`` marks each: its version is the next one that the store would have given out, so that
nothing saved before belongs to the beginning; its detail has the beginning's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, exists, select

from ckptstore.errors import CorruptManifestError
from ckptstore.manifest.events import add_event
from ckptstore.manifest.runs.runs import run_id
from ckptstore.manifest.statements import RUN, RUN_BEGAN, first_version_of_beginning, id_of_run
from ckptstore.manifest.store_row import next_version
from ckptstore.manifest.tables import EVENTS
from ckptstore.manifest.transactions import Repository

# The key of a beginning's number in its event's detail, and the one that earlier stores have.
NUMBER, EARLIER_NUMBER = "beginning", "attempt"

_BEGAN = (
    select(EVENTS.version, EVENTS.detail)
    .where(EVENTS.kind == RUN_BEGAN, EVENTS.run_id == id_of_run(RUN))
    .order_by(EVENTS.id.desc())
)


def record_beginning(connection: Connection, run: str, number: int, first: int, **detail: Any) -> None:
    """Append the event that a run begins from scratch at version `first`."""
    add_event(connection, RUN_BEGAN, run=run, version=first, detail={**detail, NUMBER: number})


class Beginnings(Repository):
    """The beginnings of a manifest's runs."""

    def begin(self, run: str, detail: Mapping[str, Any] | None = None) -> int:
        """Begin a run from scratch, and return the beginning's number; makes the run if there is none.

        It is 1 for a run in which nothing was begun or saved yet, else one more than before.

        Args:
            run: The run.
            detail: What the event says beyond that number.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("begin", run=run) as connection:
            last = self._number(connection, run, None)
            if last is None:
                last = int(_has_saved(connection, run))
            record_beginning(connection, run, last + 1, next_version(connection), **(detail or {}))
        return last + 1

    def record(self, run: str, number: int, first: int) -> None:
        """Record a beginning found in a payload, from version `first` on, unless the run has come as far already."""
        with self._transactions.writing("record_beginning") as connection:
            run_id(connection, run)  # makes the run
            if number > (self._number(connection, run, None) or 1):
                record_beginning(connection, run, number, first)

    def number(self, run: str, version: int | None = None) -> int:
        """Return the number of a run's newest beginning, or of the one that a version belongs to; the first is 1."""
        with self._transactions.reading() as connection:
            return self._number(connection, run, version) or 1

    def first_version(self, run: str) -> int:
        """Return the lowest version that may belong to a run's newest beginning; 1 if the run was never restarted."""
        with self._transactions.reading() as connection:
            return int(connection.execute(select(first_version_of_beginning(id_of_run(run)))).scalar_one())

    def _number(self, connection: Connection, run: str, version: int | None) -> int | None:
        """Return the number of the newest recorded beginning that is no later than a version, or None."""
        try:
            for first, detail in connection.execute(_BEGAN, {"run": run}):
                if version is None or first <= version:
                    return _number_in(detail)
        except (ValueError, TypeError) as error:
            reason = f"it holds an unreadable beginning: {error}"
            raise CorruptManifestError(path=self._transactions.path, reason=reason) from error
        return None


def _number_in(detail: Mapping[str, Any] | None) -> int:
    found = detail or {}
    number = found.get(NUMBER, found.get(EARLIER_NUMBER))
    if type(number) is not int or number < 1:
        raise ValueError(f"{NUMBER} is {number!r}")
    return number


def _has_saved(connection: Connection, run: str) -> bool:
    saved = exists().where(EVENTS.kind.in_(("saved", "adopted")), EVENTS.run_id == id_of_run(run))
    return bool(connection.execute(select(saved)).scalar_one())
