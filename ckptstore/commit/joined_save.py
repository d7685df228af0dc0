"""`JoinedSave`: the side of every process but 0 in saves by several processes.

It opens no manifest, takes no lock, and makes no file but this process's member, below the directory that process 0 has
made for the payload. What a crash of this process leaves of it is removed by process 0, which abandons the save at its
limit, or with the rest of a dead writer's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.driver import drive
from ckptstore.distributed.save_records import Announcement
from ckptstore.distributed.saving import JoinSave
from ckptstore.distributed.session import JobSession
from ckptstore.errors import (
    DistributedError,
    MessagesLostError,
    SaveAbandonedError,
    SaveEndUnknownError,
    StoreRemovedError,
)
from ckptstore.errors.save_failures import cause_of_failure, describe_failure
from ckptstore.formats.sharded.shards import Report, check_plan, check_processes, member_of
from ckptstore.formats.snapshot import Snapshot
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at


class JoinedSave:
    """Writes this process's members of the saves that process 0 announces.

    Args:
        session: The fit's processes.
        layout: The store's paths, as this process sees them.
        limit_s: How long to wait for the announcement of a save, in seconds; by default twice the session's limit.
    """

    def __init__(self, session: JobSession, layout: Layout, *, limit_s: float | None = None) -> None:
        self._session = session
        self._layout = layout
        self._limit_s = limit_s
        # The id of the store, from the first announcement.
        self._store: str | None = None

    def save(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Write this process's member of a save, and wait for the save's end; returns the checkpoint.

        Args:
            snapshot: What this process has of the model.
            request: The save; only its number and its position are used.

        Raises:
            SaveAbandonedError: There is no checkpoint, and the other processes know it too.
            SaveEndUnknownError: Process 0 has not told the end within the limit: the checkpoint may exist.
            StoreRemovedError: There is none that this process knows of, and the store is no longer here.
        """
        number = request.number_in_job()
        try:
            attempt, problem = 0, None
            while True:
                join = self._session.join_save(number, attempt, step=request.step, limit_s=self._limit_s)
                problem = self._take_part(join, snapshot, request) or problem
                error = join.error()
                outcome = join.outcome
                if outcome is not None and outcome.committed:
                    assert outcome.checkpoint is not None
                    return Checkpoint.from_json(outcome.checkpoint, store=self._layout.root)
                if error is not None and (outcome is None or outcome.is_final):
                    self._check_store_after(error)
                    raise error from problem
                attempt += 1
        finally:
            self._session.end_save(number)

    def withdraw(self, request: SaveRequest, error: Exception) -> None:
        """Tell process 0 that this process has nothing to save, so that it need not wait; raises nothing."""
        number = request.number_in_job()
        join = self._session.join_save(number, step=request.step)
        join.refuse(describe_failure(error))  # whatever the cause: this process joins no other attempt
        with suppress(DistributedError):  # then process 0 waits until its limit
            _send_answer(join)
        self._session.end_save(number)

    def _take_part(self, join: JoinSave, snapshot: Snapshot, request: SaveRequest) -> Exception | None:
        """Go through an attempt to its end; returns what went wrong in this process."""
        problem: Exception | None = None
        patience_s = self._session.patience_s
        try:
            drive(join, patience_s=patience_s, sleep=self._session.pause)
            if join.state == "announced":
                elsewhere = _elsewhere(join, request)
                if elsewhere is None:
                    problem = self._write(join, snapshot)
                else:
                    join.refuse(elsewhere)
            drive(join, patience_s=patience_s, sleep=self._session.pause)
        except MessagesLostError as error:
            raise self._lost(join, error) from error
        return problem

    def _write(self, join: JoinSave, snapshot: Snapshot) -> Exception | None:
        """Write this process's member, and report it; returns what went wrong, which is reported too."""
        from ckptstore.formats import payload  # imports numpy and h5py, which queries do not need

        assert join.announcement is not None
        try:
            shards = check_processes(snapshot, self._session.job.processes)
            if shards is not None:
                shards = replace(shards, reports=_Answer(join, self._session.patience_s))
            self._check_store(join.announcement)
            check_plan(shards, join.announcement.plan)
            upload = payloads_at(self._layout).join(join.announcement.upload)
            encoded = payload.encode(replace(snapshot, shards=shards), join.announcement.fields)
            encoded.write_to(upload)
        except BaseException as error:
            if join.state == "announced":
                join.refuse(describe_failure(error), cause_of_failure(error))
            _send_answer(join, self._session.patience_s)
            if not isinstance(error, Exception) or isinstance(error, MessagesLostError):
                raise
            return error
        return None

    def _check_store(self, announcement: Announcement) -> None:
        self._layout.require_manifest()
        store = announcement.fields.get("store")
        if self._store not in (None, store):
            raise StoreRemovedError(store=self._layout.root, reason="another store was put in its place")
        self._store = store

    def _check_store_after(self, error: Exception) -> None:
        try:
            self._layout.require_manifest()
        except StoreRemovedError as removed:
            raise removed from error

    def _lost(self, join: JoinSave, error: MessagesLostError) -> SaveAbandonedError | SaveEndUnknownError:
        """Return the error of a save during which messages no longer got through."""
        process, announcement = self._session.job.process, join.announcement
        version = None if announcement is None else announcement.version
        if join.may_be_committed:
            return SaveEndUnknownError(
                process=process, save=join.number, version=version, limit_s=self._session.patience_s
            )
        # Without this process's report there is no checkpoint.
        return SaveAbandonedError(
            process=process,
            save=join.number,
            version=version,
            refused={process: describe_failure(error)},
            limit_s=self._session.save_limit_s,
        )


def _elsewhere(join: JoinSave, request: SaveRequest) -> str | None:
    """Return where this process is, if process 0 saves elsewhere: a loop by hand may count no steps, only epochs."""
    assert join.announcement is not None
    for name, own in (("epoch", request.epoch), ("batch", request.batch)):
        announced = join.announcement.fields.get(name)
        if announced != own:
            return f"is at {name} {own}, and {name} {announced} was announced"
    return None


class _Answer:
    """Implementation of `ckptstore.formats.sharded.shards.Reports` for every process but 0."""

    def __init__(self, join: JoinSave, patience_s: float) -> None:
        self._join = join
        self._patience_s = patience_s

    def post(self, report: Report) -> None:
        """Send what became of this process's member; the end of the save is not waited for here."""
        if report.written is None:
            self._join.refuse(report.problem, report.cause)
        else:
            self._join.report(
                member=member_of(report.process),
                nbytes=report.written.nbytes,
                digest=report.written.digest,
            )
        _send_answer(self._join, self._patience_s)

    def wait(self, limit_s: float) -> Sequence[Report]:
        """Process 0 alone waits."""
        raise NotImplementedError


def _send_answer(join: JoinSave, patience_s: float = 0.0) -> None:
    """Send an answer that has begun, and do not wait for the end."""
    drive(_Sending(join), patience_s=patience_s)


class _Sending:
    """A `JoinSave` up to the point where its answer is sent."""

    def __init__(self, join: JoinSave) -> None:
        self._join = join

    @property
    def needs_steps(self) -> bool:
        return self._join.state in ("checking", "reporting")

    def step(self, now: float) -> bool:
        return self._join.step(now)
