"""Runs: their names, which process writes each, and which metrics it monitors."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from sqlalchemy import Connection, select, update

from ckptstore.manifest.metrics import metric_ids
from ckptstore.manifest.statements import RUN, id_of_run, insert_with_new_id, upsert, upsert_by
from ckptstore.manifest.store_row import uuid as uuid_of_store
from ckptstore.manifest.tables import METRIC_NAMES, MONITORS, RUNS, WRITERS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Claim, Holder, Mode

RUN_ID = select(RUNS.id).where(RUNS.name == RUN)
_PUT_MONITOR = upsert_by(MONITORS.table, "run_id", "metric_id")
_PUT_WRITER = upsert_by(WRITERS.table, "run_id")
_MONITORS = select(METRIC_NAMES.name, MONITORS.mode).join_from(
    MONITORS.table, METRIC_NAMES.table, METRIC_NAMES.id == MONITORS.metric_id
)
_MONITORS_OF_RUN = _MONITORS.where(MONITORS.run_id == id_of_run(RUN))


def run_id(connection: Connection, name: str) -> int:
    """Return a run's id; makes the run if there is none."""
    found: int | None = connection.execute(RUN_ID, {"run": name}).scalar()
    return new_run(connection, name) if found is None else found


def new_run(connection: Connection, name: str) -> int:
    """Make a run and return its id."""
    return insert_with_new_id(connection, RUNS.table, name=name, created_at=datetime.now(UTC))


def monitors(connection: Connection, run: str | None) -> list[tuple[str, Mode]]:
    """Return the metrics that a run, or any, monitors, each with its better direction."""
    found = connection.execute(_MONITORS if run is None else _MONITORS_OF_RUN, {"run": run})
    return [(name, cast(Mode, mode)) for name, mode in found]


def set_monitor(connection: Connection, run: str, metric: str, mode: Mode) -> None:
    """Record that a run monitors a metric, and its better direction; makes the run if there is none."""
    if (metric, mode) in monitors(connection, run):
        return
    metric_id = metric_ids(connection, [metric])[metric]
    key = {"run_id": run_id(connection, run), "metric_id": metric_id}
    upsert(connection, _PUT_MONITOR, key, {"mode": mode})


class Runs(Repository):
    """The runs of a manifest."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, sorted."""
        with self._transactions.reading() as connection:
            return tuple(sorted(connection.scalars(select(RUNS.name))))

    def holder(self, run: str) -> Holder | None:
        """Return the process that writes, or last wrote, a run; None where that is not known."""
        chosen = select(RUNS.holder_host, RUNS.holder_pid, RUNS.holder_started_at).where(RUNS.name == run)
        with self._transactions.reading() as connection:
            row = connection.execute(chosen).one_or_none()
            if row is None or row.holder_host is None:
                return None
            return Holder(host=row.holder_host, pid=row.holder_pid, started_at=row.holder_started_at)

    def claim(self, run: str, holder: Holder) -> Claim:
        """Record a process as the writer of a run, and write the run under its claim; makes the run if there is none.

        From the COMMIT on, whoever wrote the run before can change nothing of it any more.
        """
        values = {
            "holder_host": holder.host,
            "holder_pid": holder.pid,
            "holder_started_at": holder.started_at,
        }
        with self._transactions.writing("claim") as connection:
            id_ = run_id(connection, run)
            connection.execute(update(RUNS.table).where(RUNS.id == id_).values(values))
            claim = Claim(run=run, store=uuid_of_store(connection), token=uuid.uuid4().hex)
            upsert(connection, _PUT_WRITER, {"run_id": id_}, {"token": claim.token})
        self.write_under(claim)
        return claim

    def write_under(self, claim: Claim) -> None:
        """Write a run under the claim of a process that this one works for; see `ckptstore.manifest.fences`."""
        self._transactions.fences.hold(claim)

    def monitors(self, run: str) -> dict[str, Mode]:
        """Return the metrics that a run monitors, each with its better direction."""
        with self._transactions.reading() as connection:
            return dict(monitors(connection, run))

    def monitored_mode(self, metric: str, run: str | None = None) -> Mode | None:
        """Return the better direction of a metric that a run, or any, monitors; None where that is not one."""
        with self._transactions.reading() as connection:
            modes = {mode for name, mode in monitors(connection, run) if name == metric}
        return modes.pop() if len(modes) == 1 else None

    def set_monitors(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Record which metrics a run monitors, each with its better direction; makes the run if there is none."""
        with self._transactions.writing("set_monitors", run=run) as connection:
            for metric, mode in monitors.items():
                set_monitor(connection, run, metric, mode)
