"""`JobSession`: the saves and the resume of one fit by several processes, numbered and under keys of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from ckptstore.distributed.agreements import Agreements
from ckptstore.distributed.driver import drive
from ckptstore.distributed.exchange import Exchange
from ckptstore.distributed.job import Job
from ckptstore.distributed.meeting import ROOT, JoinMeeting, LeadMeeting
from ckptstore.distributed.messages import Messages
from ckptstore.distributed.resuming import JoinResume, LeadResume, Offer
from ckptstore.distributed.save_records import Announcement
from ckptstore.distributed.saving import JoinSave, LeadSave
from ckptstore.errors import MessagesLostError

# How much longer than process 0 another process may take to write its part, and what process 0 may take to commit.
SAVE_LIMIT_S = 60.0
_PATIENCE_S = 20.0
_CHECK_INTERVAL_S = 1.0


class JobSession:
    """One process in one fit that several processes make together.

    Process 0 calls `lead_resume`, each other one `join_resume` as often. Every process takes the number of a save by
    `next_save`, in the same order; process 0 then leads it and the others join it, in any thread, and all end it by
    `end_save`. Several saves may be under way.

    Args:
        job: The processes.
        messages: The messages of this process.
        token: What all of them have agreed on; see `ckptstore.distributed.meeting`.
        save_limit_s: Limit for each step of a save, in seconds, unless another is given; see `Announcement`.

    Attributes:
        agreements: Decisions of process 0 for all, and the news that a process has given up.

    Example:
        >>> from ckptstore.distributed.memory import MemoryService
        >>> from ckptstore.distributed.service import ServiceMessages
        >>> job = Job(kind="memory", by="memory", process=0, processes=1, found_in="here")
        >>> messages = ServiceMessages(MemoryService(), process=0, service="memory")
        >>> session = JobSession.begin(job, messages, limit_s=10.0)
        >>> number = session.next_save()
        >>> save = session.lead_save(number, version=7, upload="a1", fields={}, step=100)
        >>> drive(save)
        >>> save.gather()  # its own part is durable
        >>> drive(save)
        >>> save.state
        'gathered'
        >>> save.committed()
        >>> drive(save)
        >>> save.outcome.committed
        True
        >>> session.end_save(number)
    """

    def __init__(
        self, job: Job, messages: Messages, token: str, *, save_limit_s: float = SAVE_LIMIT_S
    ) -> None:
        self.job = job
        self.token = token
        self.agreements = Agreements(messages, f"{ROOT}/{token}/fit")
        self.save_limit_s = save_limit_s
        self._messages = messages
        self._lock = threading.Lock()
        self._saves = self._resumes = 0
        self._next_check_s = 0.0
        # The saves that have a number and have not ended here.
        self._open: set[int] = set()
        # Of process 0: the attempts whose messages may still be there, and up to which save each process has ended all.
        self._led: dict[int, list[LeadSave]] = {}
        self._settled = dict.fromkeys(job.others, 0)

    @classmethod
    def begin(
        cls,
        job: Job,
        messages: Messages,
        *,
        limit_s: float,
        name: str = "fit",
        save_limit_s: float = SAVE_LIMIT_S,
    ) -> Self:
        """Meet the other processes.

        Args:
            job: The processes.
            messages: The messages of this process.
            limit_s: How long process 0 waits for the others, in seconds; they wait for it twice as long.
            name: What begins, where one program has several such things; the same on all processes.
            save_limit_s: As for the class.

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
        return cls(job, messages, meeting.token, save_limit_s=save_limit_s)

    def lead_resume(self, offer: Offer) -> LeadResume:
        """Return process 0's side of the beginning."""
        return LeadResume(self._next_resume(), offer, self.job.processes)

    def join_resume(self, *, limit_s: float) -> JoinResume:
        """Return another process's side of the beginning; see `JoinResume`."""
        return JoinResume(self._next_resume(), limit_s=limit_s)

    def pause(self, seconds: float) -> None:
        """Wait for a moment for another process, and look every second whether one has given up.

        Raises:
            PeerFailedError: One has.
        """
        now = time.monotonic()
        if now >= self._next_check_s:
            self._next_check_s = now + _CHECK_INTERVAL_S
            # Messages that are lost are met by what waits here, which may have patience.
            with suppress(MessagesLostError):
                self.agreements.check()
        time.sleep(seconds)

    @property
    def patience_s(self) -> float:
        """How long messages of a save may fail to get through, in seconds."""
        return min(_PATIENCE_S, self.save_limit_s)

    @property
    def is_saving(self) -> bool:
        """True while a save has a number and has not ended on this process."""
        with self._lock:
            return bool(self._open)

    def next_save(self) -> int:
        """Return the number of the next save, from 1; called where all processes do so in the same order."""
        with self._lock:
            self._saves += 1
            self._open.add(self._saves)
            return self._saves

    def lead_save(
        self,
        number: int,
        attempt: int = 0,
        *,
        version: int | None,
        upload: str,
        fields: Mapping[str, Any],
        plan: str = "",
        step: int | None,
        limit_s: float | None = None,
        commit_limit_s: float | None = None,
    ) -> LeadSave:
        """Return process 0's side of an attempt at a save; see `Announcement`."""
        announcement = Announcement(
            number=number,
            attempt=attempt,
            version=version,
            upload=upload,
            fields=fields,
            plan=plan,
            step=step,
            limit_s=self.save_limit_s if limit_s is None else limit_s,
            commit_limit_s=self.save_limit_s if commit_limit_s is None else commit_limit_s,
        )
        save = LeadSave(self._save_exchange(number, attempt), announcement, self.job.processes)
        with self._lock:
            self._led.setdefault(number, []).append(save)
        return save

    def join_save(
        self, number: int, attempt: int = 0, *, step: int | None, limit_s: float | None = None
    ) -> JoinSave:
        """Return another process's side of an attempt at a save.

        Args:
            number: The save.
            attempt: The attempt; the next one follows an outcome that is not final.
            step: The training step whose values this process has copied.
            limit_s: How long to wait for the announcement, in seconds; by default twice the limit, since process 0 may
                have to wait for the store's lock before it.
        """
        with self._lock:
            settled = min(self._open, default=self._saves + 1) - 1
        return JoinSave(
            self._save_exchange(number, attempt),
            number,
            step=step,
            limit_s=2 * self.save_limit_s if limit_s is None else limit_s,
            settled=settled,
        )

    def end_save(self, number: int) -> None:
        """Note that this process has ended a save, or will not ask for its messages any more; may be repeated."""
        with self._lock:
            self._open.discard(number)

    def delete_settled(self) -> None:
        """Delete the messages of saves that every process has ended; by process 0, after each save.

        So the service holds those of a few saves, however long the job.

        Raises:
            MessagesLostError: The messages do not get through; may be called again.
        """
        with self._lock:
            for saves in self._led.values():
                for save in saves:
                    for process, settled in save.settled.items():
                        self._settled[process] = max(self._settled[process], settled)
            until = min(self._settled.values(), default=self._saves)
            ended = [number for number in self._led if number <= until and number not in self._open]
            attempts = {number: len(self._led[number]) for number in ended}
        self._messages.delete(
            [
                key
                for number, count in attempts.items()
                for attempt in range(count)
                for key in self._save_exchange(number, attempt).keys(self.job.others)
            ]
        )
        with self._lock:
            for number in ended:
                del self._led[number]

    def _save_exchange(self, number: int, attempt: int) -> Exchange:
        return Exchange(self._messages, f"{ROOT}/{self.token}/save/{number:08d}/{attempt}")

    def _next_resume(self) -> Callable[[int], Exchange]:
        """Return the messages of the next resume, by the number of its round."""
        self._resumes += 1
        prefix = f"{ROOT}/{self.token}/resume/{self._resumes:08d}"
        return lambda number: Exchange(self._messages, f"{prefix}/{number:08d}")
