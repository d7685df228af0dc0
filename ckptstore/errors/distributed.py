"""Errors of a training by several processes: messages that did not come, saves and resumes that failed together."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ckptstore.errors.base import CheckpointStoreError
from ckptstore.errors.save_failures import SaveFailureCause
from ckptstore.errors.storage import StorageError


class DistributedError(CheckpointStoreError):
    """Several processes that train together could not do something together; each of them raises one of these.

    Attributes:
        process: The number of the process that raises this, from 0.
    """

    process: int


class PeerFailedError(DistributedError, RuntimeError):
    """Another process of the job has given up, so that this one cannot go on either.

    Attributes:
        failed: The number of that process.
        reason: Its error.
    """

    failed: int
    reason: str

    def __init__(self, *, process: int, failed: int, reason: str) -> None:
        super().__init__(
            f"process {failed} has given up: {reason}",
            hint=f"see the log of process {failed}; started again, the job resumes from its newest checkpoint",
            process=process,
            failed=failed,
            reason=reason,
        )


class UnequalBatchesError(DistributedError, RuntimeError):
    """The processes of a fit have seen different numbers of batches in one epoch, and cannot train on together.

    Each step needs all of them: one would wait for ever in a step that the other does not make, or their steps would
    be of different epochs. The checkpoints from before that are sound.

    Attributes:
        part: ``"training"`` or ``"validation"``.
        epoch: Zero-based index of the epoch.
        batches: The batches of this process; where `ended` is False, those that it has begun so far.
        ended: True if this part of the epoch has ended on this process.
        other: The number of the other process.
        other_batches: Its batches, of the whole epoch.
    """

    part: Literal["training", "validation"]
    epoch: int
    batches: int
    ended: bool
    other: int
    other_batches: int

    def __init__(
        self,
        *,
        process: int,
        part: Literal["training", "validation"],
        epoch: int,
        batches: int,
        ended: bool,
        other: int,
        other_batches: int,
    ) -> None:
        own = str(batches) if ended else f"{batches} so far"
        argument = "steps_per_epoch" if part == "training" else "validation_steps"
        super().__init__(
            f"epoch {epoch + 1} has had {other_batches} {part} batches on process {other}, and {own} on process "
            f"{process}",
            hint=f"give every process equally many batches, as by fit({argument}=...), and set model.stop_training at "
            "an epoch's end, or on all of them after the same batch; started again, the job resumes from its newest "
            "checkpoint",
            process=process,
            part=part,
            epoch=epoch,
            batches=batches,
            ended=ended,
            other=other,
            other_batches=other_batches,
        )


class MessageTimeoutError(DistributedError, TimeoutError):
    """A message of another process did not come within the limit.

    Attributes:
        key: Its key.
        limit_s: How long it was waited for.
    """

    key: str
    limit_s: float

    def __init__(self, *, process: int, key: str, limit_s: float) -> None:
        super().__init__(
            f"process {process} has waited {limit_s:g} s for the message {key!r}",
            hint="the process that sends it is dead, stopped, or slower than the limit: see its log",
            process=process,
            key=key,
            limit_s=limit_s,
        )


class MessagesLostError(DistributedError, ConnectionError):
    """The service that carries messages between the processes does not answer.

    Attributes:
        key: The key of the message; empty where there is no way to send any.
        service: The service, such as ``"jax.distributed"``.
        reason: What it said, or how long it was waited for.
    """

    key: str
    service: str
    reason: str

    def __init__(self, *, process: int, key: str, service: str, reason: str) -> None:
        super().__init__(
            f"process {process} cannot reach {service}{f' for the message {key!r}' if key else ''}: {reason}",
            hint="the service lives in process 0, or in what started the job: see whether that is alive, and start "
            "the job again",
            process=process,
            key=key,
            service=service,
            reason=reason,
        )


class MessageConflictError(DistributedError, RuntimeError):
    """There is another message of this key: a message is written once.

    Attributes:
        key: The key.
        present: The message that there is.
    """

    key: str
    present: str

    def __init__(self, *, process: int, key: str, present: str) -> None:
        shown = present if len(present) <= 60 else f"{present[:60]}…"
        super().__init__(
            f"process {process} cannot send the message {key!r}: there is another one, {shown!r}",
            hint="two processes have the same number, or two trainings of one job the same name",
            process=process,
            key=key,
            present=present,
        )


class JobIncompleteError(DistributedError, TimeoutError):
    """Not all processes of the job came to where they begin together, within the limit.

    Attributes:
        processes: The number of processes.
        silent: The numbers of those that did not come.
        limit_s: How long they were waited for.
    """

    processes: int
    silent: tuple[int, ...]
    limit_s: float

    def __init__(self, *, process: int, processes: int, silent: tuple[int, ...], limit_s: float) -> None:
        super().__init__(
            f"process {process} of {processes} has waited {limit_s:g} s for {numbered(silent)} to begin",
            hint="every process must begin the fit with the same callback, or in a loop by hand call open_in_job; see "
            "the logs of those that are missing",
            process=process,
            processes=processes,
            silent=silent,
            limit_s=limit_s,
        )


class SaveAbandonedError(DistributedError, StorageError):
    """A save by several processes ended without a checkpoint, on all of them; older checkpoints are as they were.

    Attributes:
        save: The number of the save; None where it has none.
        version: The version that the checkpoint would have had, or None if it was never announced here.
        silent: The processes that did not report within the limit.
        refused: The processes that could not take part, and why.
        cause: ``"disk_full"``, or ``"storage"`` for another failure of a disk, where such a failure was all that was
            wrong: another try may succeed; ``"other"`` for everything else.
        limit_s: The limit.
    """

    save: int | None
    version: int | None
    silent: tuple[int, ...]
    refused: Mapping[int, str]
    cause: SaveFailureCause
    limit_s: float

    def __init__(
        self,
        *,
        process: int,
        save: int | None,
        version: int | None,
        silent: tuple[int, ...] = (),
        refused: Mapping[int, str] | None = None,
        cause: SaveFailureCause = "other",
        limit_s: float,
    ) -> None:
        refused = dict(refused or {})
        reasons = [f"process {number}: {reason}" for number, reason in sorted(refused.items())]
        if silent:
            reasons.append(f"{numbered(silent)} did not report within {limit_s:g} s")
        number = "the save" if save is None else f"save {save}"
        named = "" if version is None else f" (version {version})"
        codes = {"disk_full": errno.ENOSPC, "storage": errno.EIO, "other": errno.ECANCELED}
        CheckpointStoreError.__init__(
            self,
            f"{number}{named} was abandoned: {'; '.join(reasons)}",
            hint="free some space there; saving then works again"
            if cause == "disk_full"
            else "older checkpoints are not affected, and the next save is a new try; see the logs of these processes",
            process=process,
            save=save,
            version=version,
            silent=silent,
            refused=refused,
            cause=cause,
            limit_s=limit_s,
            operation="save",
            path=Path(),
            errno=errno.ETIMEDOUT if silent else codes[cause],
        )


class SaveEndUnknownError(DistributedError, StorageError):
    """Process 0 has not told within the limit how a save by several processes ended: the checkpoint may exist.

    Attributes:
        save: The number of the save.
        version: Its version, or None if it was never announced here.
        limit_s: How long it was waited for.
    """

    save: int
    version: int | None
    limit_s: float

    def __init__(self, *, process: int, save: int, version: int | None, limit_s: float) -> None:
        what = "that it begins" if version is None else f"how it ended (version {version})"
        CheckpointStoreError.__init__(
            self,
            f"process {process} has waited {limit_s:g} s for process 0 to tell of save {save}: {what}",
            hint="if the checkpoint exists is in the store: ckptstore ls; see the log of process 0",
            process=process,
            save=save,
            version=version,
            limit_s=limit_s,
            operation="save",
            path=Path(),
            errno=errno.ETIMEDOUT,
        )


class ResumeRefusedError(DistributedError, RuntimeError):
    """The processes could not agree to begin from the same checkpoint; no process has begun.

    Attributes:
        version: The checkpoint that was offered last; None for a beginning from scratch, or where none was offered.
        silent: The processes that did not answer within the limit.
        refused: The processes that could not, and why.
    """

    version: int | None
    silent: tuple[int, ...]
    refused: Mapping[int, str]

    def __init__(
        self,
        *,
        process: int,
        version: int | None,
        silent: tuple[int, ...] = (),
        refused: Mapping[int, str] | None = None,
        limit_s: float,
    ) -> None:
        refused = dict(refused or {})
        reasons = [f"process {number}: {reason}" for number, reason in sorted(refused.items())]
        if silent:
            reasons.append(f"{numbered(silent)} did not answer within {limit_s:g} s")
        what = "begin" if version is None else f"resume from version {version}"
        super().__init__(
            f"the processes cannot {what} together: {'; '.join(reasons)}",
            hint="every process needs the same program and the same store: a directory that all of them see",
            process=process,
            version=version,
            silent=silent,
            refused=refused,
            limit_s=limit_s,
        )


def numbered(processes: tuple[int, ...]) -> str:
    """Return ``"process 3"`` or ``"processes 3 and 5"``; of many, the first and their number.

    Example:
        >>> numbered((3,)), numbered((1, 2, 3))
        ('process 3', 'processes 1, 2 and 3')
    """
    names: list[Any] = [*processes]
    if len(names) == 1:
        return f"process {names[0]}"
    if len(names) > 8:
        names = [*names[:7], f"{len(names) - 7} others"]
    return f"processes {', '.join(map(str, names[:-1]))} and {names[-1]}"
