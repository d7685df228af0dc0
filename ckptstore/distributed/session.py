"""`JobSession`: the saves and the resume of one fit by several processes, numbered and under keys of their own."""

from __future__ import annotations

from typing import Self

from ckptstore.distributed.driver import drive
from ckptstore.distributed.exchange import Exchange
from ckptstore.distributed.job import Job
from ckptstore.distributed.meeting import ROOT, JoinMeeting, LeadMeeting
from ckptstore.distributed.messages import Messages
from ckptstore.distributed.resuming import JoinResume, LeadResume, Offer
from ckptstore.distributed.saving import Announcement, JoinSave, LeadSave


class JobSession:
    """One process in one fit that several processes make together.

    Process 0 calls `lead_resume` and `lead_save`, each other one `join_resume` and `join_save` as often, in the same
    order. What they return may be driven by other threads, several saves at a time.

    Args:
        job: The processes.
        messages: The messages of this process.
        token: What all of them have agreed on; see `ckptstore.distributed.meeting`.

    Example:
        >>> from ckptstore.distributed.memory import MemoryService
        >>> from ckptstore.distributed.service import ServiceMessages
        >>> job = Job(kind="memory", by="memory", process=0, processes=1, found_in="here")
        >>> messages = ServiceMessages(MemoryService(), process=0, service="memory")
        >>> session = JobSession.begin(job, messages, limit_s=10.0)
        >>> save = session.lead_save(version=7, upload="a1", step=100, limit_s=10.0)
        >>> drive(save)
        >>> save.state
        'gathered'
        >>> save.committed()
        >>> drive(save)
        >>> save.outcome.committed
        True
    """

    def __init__(self, job: Job, messages: Messages, token: str) -> None:
        self.job = job
        self.token = token
        self._messages = messages
        self._saves = 0
        self._led: dict[int, LeadSave] = {}
        self._joined: dict[int, JoinSave] = {}

    @classmethod
    def begin(cls, job: Job, messages: Messages, *, limit_s: float, name: str = "fit") -> Self:
        """Meet the other processes.

        Args:
            job: The processes.
            messages: The messages of this process.
            limit_s: How long to wait for the others, in seconds.
            name: What begins, where one program has several such things; the same on all processes.

        Raises:
            JobIncompleteError: Not all have come; each process that did raises it, and it names the others.
            MessagesLostError: The messages do not get through.
        """
        meeting = (LeadMeeting if job.is_leader else JoinMeeting)(
            messages, job.processes, limit_s=limit_s, name=name
        )
        drive(meeting)
        if meeting.state == "failed":
            raise meeting.error()
        return cls(job, messages, meeting.token)

    def lead_resume(self, offer: Offer) -> LeadResume:
        """Return process 0's side of the beginning."""
        return LeadResume(lambda number: self._exchange("resume", number), offer, self.job.processes)

    def join_resume(self, *, limit_s: float) -> JoinResume:
        """Return another process's side of the beginning; see `JoinResume`."""
        return JoinResume(lambda number: self._exchange("resume", number), limit_s=limit_s)

    def lead_save(
        self, *, version: int, upload: str, step: int, limit_s: float, commit_limit_s: float = 60.0
    ) -> LeadSave:
        """Return process 0's side of the next save; see `Announcement`."""
        self._saves += 1
        announcement = Announcement(
            number=self._saves,
            version=version,
            upload=upload,
            step=step,
            limit_s=limit_s,
            commit_limit_s=commit_limit_s,
        )
        save = LeadSave(self._exchange("save", self._saves), announcement, self.job.processes)
        self._led[self._saves] = save
        return save

    def join_save(self, *, step: int, limit_s: float) -> JoinSave:
        """Return another process's side of the next save; see `JoinSave`."""
        settled = self._settled()
        self._joined = {number: save for number, save in self._joined.items() if number > settled}
        self._saves += 1
        exchange = self._exchange("save", self._saves)
        save = JoinSave(exchange, self._saves, step=step, limit_s=limit_s, settled=settled)
        self._joined[self._saves] = save
        return save

    def delete_settled(self) -> None:
        """Delete the messages of saves of which every process knows the end; by process 0, at any time.

        Raises:
            MessagesLostError: The messages do not get through; may be called again.
        """
        known = dict.fromkeys(self.job.others, 0)
        for save in self._led.values():
            known |= {
                process: max(known[process], report.settled) for process, report in save.reports.items()
            }
        settled = [number for number in self._led if number <= min(known.values(), default=self._saves)]
        settled = [number for number in settled if self._led[number].state == "told"]
        self._messages.delete(
            [key for number in settled for key in self._exchange("save", number).keys(self.job.others)]
        )
        for number in settled:
            del self._led[number]

    def _settled(self) -> int:
        """Return the save up to which this process knows the end of each, or will not ask for it any more."""
        running = [number for number, save in self._joined.items() if save.state not in ("settled", "lost")]
        return min(running, default=self._saves + 1) - 1

    def _exchange(self, kind: str, number: int) -> Exchange:
        return Exchange(self._messages, f"{ROOT}/{self.token}/{kind}/{number:08d}")
