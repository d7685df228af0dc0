"""`FitJob`: the processes of one fit, from where they meet to its end, as one of them has it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from ckptstore.distributed.batch_counts import BatchCounts, EpochWord
from ckptstore.distributed.job import Job
from ckptstore.distributed.meeting import JOIN_FACTOR, ROOT
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.distributed.stopping import AgreedStop
from ckptstore.errors import (
    DistributedError,
    InvalidArgumentError,
    PeerFailedError,
    SeveralProcessesError,
    UnequalBatchesError,
)
from ckptstore.keras.private import messages_of
from ckptstore.system import messages as system_messages
from ckptstore.training.job.leaving import Leaving
from ckptstore.training.job.peer_watch import PeerWatch

if TYPE_CHECKING:
    from ckptstore.commit.request import SaveRequest

# How long process 0 waits at the beginning for the others, whose hosts may start later.
MEETING_LIMIT_S = 300.0
# How long the processes may take to load a checkpoint, from its offer on.
LOAD_LIMIT_S = 900.0
# How long process 0 waits at its end for the others to read what it has told: its service may end with it.
LEAVING_LIMIT_S = 10.0
# Seconds of waiting before a line says so.
_LINE_AFTER_S = 10.0


def refuse_unequal_replicas(callback: object, job: Job, *, is_fit: bool) -> None:
    """Refuse Keras' own loop where it trains another model in each process: torch's adds up no gradients.

    Args:
        callback: The callback of the fit, to be named.
        job: The processes.
        is_fit: True in Keras' own loop.

    Raises:
        SeveralProcessesError: It is Keras' own loop on torch.
    """
    if is_fit and job.kind == "torch":
        raise SeveralProcessesError(
            operation=f"{type(callback).__name__} in a fit on torch",
            by=job.by,
            processes=job.processes,
            process=job.process,
            hint="Keras' fit adds up no gradients between processes there, and each would train a model of its own; "
            "write a loop with DistributedDataParallel: ckptstore guide torch-loops",
        )


class FitJob:
    """The processes of one fit.

    Args:
        job: The processes.
        messages: The messages of this one.
        session: The saves and the resume of this fit.

    Attributes:
        job: As above.
        session: As above.
        agreements: What process 0 decides for all.
        counts: The batches of each epoch, on this process and elsewhere.
        leaving: Ends this process where a step cannot end.
        watch: Notices what ends the fit on another process.
        stop: The agreement on where to stop.
    """

    def __init__(self, job: Job, messages: ServiceMessages, session: JobSession) -> None:
        self.job = job
        self.session = session
        self.agreements = session.agreements
        self.counts = BatchCounts(messages, job.processes, f"{ROOT}/{session.token}/batches")
        self.leaving = Leaving(job, session)
        self.watch = PeerWatch(self.agreements, self.counts, leave=self.leaving.look)
        self.stop = AgreedStop(messages, job.processes, f"{ROOT}/{session.token}/stop", on_look=self.watch)
        self._messages = messages
        self._has_left = self._tells_at_exit = False

    @classmethod
    def meet(cls, job: Job, name: str, *, limit_s: float | None = None) -> Self:
        """Meet the other processes of a fit, which begins.

        Args:
            job: The processes.
            name: The fit's name, the same on all of them.
            limit_s: How long process 0 waits for the others, in seconds; by default `MEETING_LIMIT_S`. They wait for it
                twice as long.

        Raises:
            JobIncompleteError: Not all have come.
            MessagesLostError: No messages can be sent, or they do not get through.
        """
        messages = messages_of(job)
        limit_s = MEETING_LIMIT_S if limit_s is None else limit_s
        longest_s = limit_s if job.is_leader else JOIN_FACTOR * limit_s
        line = threading.Timer(_LINE_AFTER_S, _tell_of_waiting, (job, longest_s))
        line.daemon = True
        line.start()
        try:
            session = JobSession.begin(job, messages, limit_s=limit_s, name=name)
        except BaseException:
            messages.close()
            raise
        finally:
            line.cancel()
        return cls(job, messages, session)

    @property
    def is_leader(self) -> bool:
        """True on process 0."""
        return self.job.is_leader

    def numbered(self, request: SaveRequest) -> SaveRequest:
        """Return a request with the number of its save; every process calls this for each save, in the same order.

        One that has a number keeps it: a save in the background is numbered before its queue may refuse it.
        """
        if request.job_save is not None:
            return request
        return replace(request, job_save=self.session.next_save())

    def require_equal(self, options: Mapping[str, Any]) -> None:
        """Refuse options that process 0 has otherwise: each process would save after batches of its own.

        Args:
            options: The options by name; JSON.

        Raises:
            InvalidArgumentError: One differs from process 0's.
            DistributedError: Process 0's do not arrive.
        """
        first = self.agreements.decide(dict(options))
        for name, value in options.items():
            if first[name] != value:
                raise InvalidArgumentError(
                    argument=name,
                    value=value,
                    reason=f"is {first[name]!r} on process 0, and this is process {self.job.process}",
                    hint="give every process of a fit the same options",
                )

    def agree_at_epoch_end(self, stops: bool) -> bool:
        """Return process 0's answer to whether training stops with the epoch that has ended; every process calls this.

        Of processes that stopped at different epochs, one would wait in a step for the other.

        Raises:
            UnequalBatchesError: The epoch has had other batches on process 0.
            DistributedError: Process 0's answer does not arrive.
        """
        first = self.agreements.decide({"stops": stops, "batches": self.counts.epoch_ends()})
        if not self.is_leader:
            self.counts.compare(0, EpochWord(*first["batches"]))
        return bool(first["stops"])

    def give_up(self, error: BaseException) -> None:
        """Tell the others that this process cannot go on, so that none waits for it."""
        self.agreements.give_up(f"{type(error).__name__}: {error}")
        self._tell_at_exit()

    def close(self) -> None:
        """End the threads of this fit, process 0 after the others, up to `LEAVING_LIMIT_S`; may be called again."""
        self.stop.close()
        if self.is_leader:
            with suppress(DistributedError):  # after the fit nobody reads them
                self.session.delete_settled()
        # JAX's own processes wait for each other when they exit.
        if self.job.kind == "jax":
            self._tell_at_exit_if_needed()
        elif not self._has_left:
            self._has_left = True
            with suppress(DistributedError):
                self.agreements.leave(self.job.others, limit_s=LEAVING_LIMIT_S)
        if not self._tells_at_exit:  # then no thread can be started
            self._messages.close()

    def _tell_at_exit_if_needed(self) -> None:
        """Look whether a process has given up, for which another one may stay in a step: see `Leaving`."""
        try:
            self.watch.check()
            self.agreements.check()
        except (PeerFailedError, UnequalBatchesError):
            self._tell_at_exit()
        except DistributedError:  # the service has ended, and JAX ends the others
            pass

    def _tell_at_exit(self) -> None:
        if not self._tells_at_exit and self.job.kind == "jax":
            self._tells_at_exit = True
            # What is registered last is called first: before JAX waits for the others.
            atexit.register(self._tell_of_exit)

    def _tell_of_exit(self) -> None:
        with suppress(DistributedError):
            self.agreements.exits()


def _tell_of_waiting(job: Job, limit_s: float) -> None:
    system_messages.log(
        f"ckptstore: process {job.process} of {job.processes} waits for the others to begin, up to {limit_s:g} s: each "
        "of them needs the same callback, or in a loop by hand open_in_job"
    )
