"""`LedSave`: process 0's side of a save by several processes, with all its attempts.

The steps of an attempt, and what the other processes know after a crash of process 0 at each:

1. `LedSave.announce`: nothing before it; after it, that there is an upload. They write their members.
2. The payload's format waits for their reports. They have reported, and cannot know if the save succeeds.
3. The manifest's COMMIT: the checkpoint exists, and they still cannot know it.
4. `LedSave.committed`: they have the checkpoint's record.

An attempt that fails is told at once (`LedSave.failed`), and the others wait for another attempt, or for
`LedSave.give_up`, which ends the save for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from ckptstore.distributed.driver import drive
from ckptstore.distributed.saving import LeadSave
from ckptstore.distributed.session import JobSession
from ckptstore.errors import DistributedError, MessagesLostError, SaveAbandonedError
from ckptstore.errors.save_failures import cause_of_failure, describe_failure
from ckptstore.formats.sharded.shards import Report, check_processes, plan_digest
from ckptstore.formats.snapshot import Snapshot
from ckptstore.records import Checkpoint
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.payloads.interface import Upload
from ckptstore.system import messages


class LedSave:
    """Process 0's side of a save by several processes; ends it for all of them when its block ends.

    Args:
        session: The fit's processes.
        number: The save, from `JobSession.next_save`.
        limit_s: How much longer than process 0 another process may take to write its member, in seconds; by default
            the session's limit.

    Example:
        A save with retries, by process 0::

            with LedSave(session, request.job_save) as led:
                checkpoint = with_retries(partial(committer.commit, snapshot, request, led=led))
    """

    def __init__(self, session: JobSession, number: int, *, limit_s: float | None = None) -> None:
        self._session = session
        self._number = number
        self._attempt = 0
        self._lead: LeadSave | None = None
        self._is_over = False
        self.limit_s = session.save_limit_s if limit_s is None else limit_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_up(error)
        self._session.end_save(self._number)
        with suppress(DistributedError):  # they are deleted after a later save
            self._session.delete_settled()

    def announce(
        self,
        snapshot: Snapshot,
        version: int,
        upload: Upload,
        fields: Mapping[str, Any],
        step: int | None,
    ) -> Snapshot:
        """Announce an attempt, so that the other processes write their members.

        Args:
            snapshot: What process 0 has of the model.
            version: The version that the checkpoint will have.
            upload: The payload under construction.
            fields: The fields of the description.
            step: The training step whose values are saved.

        Returns:
            The snapshot, whose encoding waits for the reports of the others.

        Raises:
            InvalidArgumentError: The snapshot is not of as many processes.
            SaveAbandonedError: The message does not get through.
            StorageError: The upload cannot be begun.
        """
        shards = check_processes(snapshot, self._session.job.processes)
        lead = self._lead = self._session.lead_save(
            self._number,
            self._attempt,
            version=version,
            upload=upload.share(),
            fields=fields,
            plan=plan_digest(shards),
            step=step,
            limit_s=self.limit_s,
        )
        self._drive(lead)
        if shards is None:
            return snapshot
        shards = replace(shards, reports=_GatheredReports(self, lead), limit_s=self.limit_s)
        return replace(snapshot, shards=shards)

    def gathered(self, lead: LeadSave) -> None:
        """Wait until all other processes have reported.

        Raises:
            SaveAbandonedError: One has not, within the limit, or has refused, or messages are lost.
        """
        lead.gather()
        self._drive(lead)
        error = lead.error()
        if error is not None:
            raise error

    def _drive(self, lead: LeadSave) -> None:
        try:
            drive(lead, patience_s=self._session.patience_s, sleep=self._session.pause)
        except MessagesLostError as error:
            if lead.outcome is None:
                lead.abandon(describe_failure(error))
            abandoned = lead.error()
            assert abandoned is not None
            raise abandoned from error

    def committed(self, checkpoint: Checkpoint) -> None:
        """Tell the others that the checkpoint exists; raises nothing, since it does.

        Where the message does not get through, they do not know how the save ended.
        """
        lead, self._lead = self._lead, None
        assert lead is not None
        self._is_over = True
        if lead.state == "announced":  # a process without others has nobody to wait for
            lead.gather()
            drive(lead)
        lead.committed(checkpoint.to_json())
        problem = self._tell(lead)
        if problem is not None:
            messages.warn(
                f"version {checkpoint.version} is saved, but the other processes could not be told so: {problem}"
            )

    def failed(self, error: BaseException) -> None:
        """Tell the others at once that this attempt has failed, if it was announced; raises nothing.

        They wait for another attempt, or for `give_up`.
        """
        lead, self._lead = self._lead, None
        if lead is None:
            return
        if lead.outcome is None:
            lead.abandon(describe_failure(error), cause=cause_of_failure(error))
        self._attempt += 1
        self._tell(lead)

    def give_up(self, error: BaseException | None) -> None:
        """Tell the others that there will be no checkpoint of this save, unless there is one; raises nothing.

        Args:
            error: Why; None where process 0 has not tried.
        """
        if self._is_over:
            return
        self._is_over = True
        error = RuntimeError("process 0 has left it out") if error is None else error
        self.failed(error)
        because = error if isinstance(error, SaveAbandonedError) else None
        lead = self._session.lead_save(
            self._number,
            self._attempt,
            version=None if because is None else because.version,
            upload="",
            fields={},
            step=None,
        )
        lead.abandon(describe_failure(error), cause=cause_of_failure(error), because=because, is_final=True)
        self._tell(lead)

    def _tell(self, lead: LeadSave) -> DistributedError | None:
        try:
            drive(lead, patience_s=self._session.patience_s)
        except DistributedError as error:
            return error
        return None


class _GatheredReports:
    """Implementation of `ckptstore.formats.sharded.shards.Reports` for process 0."""

    def __init__(self, led: LedSave, lead: LeadSave) -> None:
        self._led = led
        self._lead = lead

    def post(self, report: Report) -> None:
        """Process 0 posts nothing."""

    def wait(self, limit_s: float) -> Sequence[Report]:
        """Return the reports of all others; the limit is that of the announcement.

        Raises:
            SaveAbandonedError: One is missing, or says that its member failed; at once where one says so.
        """
        self._led.gathered(self._lead)
        return [
            Report(process=process, written=Written(nbytes=report.nbytes, digest=report.digest))
            for process, report in sorted(self._lead.reports.items())
        ]
