"""`SaveRequest`: the options of one save: position, metrics, tags, and the steps that follow the commit."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import FinishedEpoch, Format, Mode
from ckptstore.retention.policy import Policy, as_policy, check_modes
from ckptstore.storage.layout import absolute, require_outside
from ckptstore.validation import check_extra, check_metrics, check_position, check_run, check_tag


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """The checked options of one save; the names are those of `ckptstore.CheckpointStore.save`.

    Attributes:
        notes: Events to record with the checkpoint, by kind.
        earlier_epochs: Epochs that ended before, and whose metrics the manifest does not have yet.
        rollbacks: Steps that the run went back to and came from, of each rollback so far.
        created_at: Time of the save; aware, UTC.
        began: `time.perf_counter()` when the caller began to wait; the same clock in all processes of a machine.
        blocked_s: Seconds that the caller waited, if it did not wait for the end.
        total_s: Seconds that the save took, if that is not the time since `began`, as for a copied checkpoint.
        job_save: Of a save by several processes, its number: see `ckptstore.distributed.session.JobSession.next_save`.
    """

    run: str
    epoch: int
    batch: int | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None
    publish: Path | None = None
    keep: Policy | None = None
    monitor: tuple[str, Mode] | None = None
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    earlier_epochs: tuple[FinishedEpoch, ...] = ()
    rollbacks: tuple[tuple[int, int], ...] = ()
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    blocked_s: float | None = None
    total_s: float | None = None
    job_save: int | None = None

    def waited_s(self) -> float:
        """Return the seconds since the caller began to wait."""
        return time.perf_counter() - self.began

    def number_in_job(self) -> int:
        """Return `job_save`.

        Raises:
            InvalidArgumentError: It is None.
        """
        if self.job_save is None:
            raise InvalidArgumentError(
                argument="job_save",
                value=None,
                reason="a save by several processes needs its number",
                hint="take it from JobSession.next_save, in the same order on every process",
            )
        return self.job_save


def checked_request(
    root: Path,
    *,
    run: str,
    format: Format,
    position: tuple[int, int | None, int | None],
    metrics: Mapping[str, Any] | None,
    tags: Collection[str],
    extra: Mapping[str, Any] | None,
    publish: str | os.PathLike[str] | None,
    keep: Policy | None,
    monitor: tuple[str, Mode] | None,
    notes: Mapping[str, Mapping[str, Any]],
    earlier_epochs: Collection[FinishedEpoch] = (),
    rollbacks: tuple[tuple[int, int], ...] = (),
) -> SaveRequest:
    """Return a request from a caller's arguments, each of them checked; `position` is epoch, batch and step.

    Raises:
        InvalidArgumentError: An argument cannot be used.
    """
    from ckptstore.formats.registry import by_name  # imports numpy and h5py, which queries do not need

    if by_name(format).is_directory and publish is not None:
        raise InvalidArgumentError(
            argument="publish",
            value=str(publish),
            reason=f"a payload of the format {format!r} is a directory, and cannot be shown at a path",
            hint="store.export(ref, path) writes one file",
        )
    check_position(*position)
    epoch, batch, step = (None if number is None else index(number) for number in position)
    assert epoch is not None
    policy = None if keep is None else as_policy(keep)
    if policy is not None and monitor is not None:
        check_modes(policy, dict([monitor]))
    return SaveRequest(
        run=check_run(run),
        epoch=epoch,
        batch=batch,
        step=step,
        metrics=check_metrics(metrics),
        tags=tuple(sorted({check_tag(tag) for tag in tags})),
        extra=check_extra(extra),
        publish=None if publish is None else require_outside(root, absolute(publish)),
        keep=policy,
        monitor=monitor,
        notes=notes,
        earlier_epochs=tuple(earlier_epochs),
        rollbacks=rollbacks,
    )
