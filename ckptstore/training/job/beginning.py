"""The beginning of a fit by several processes: process 0 offers checkpoints, all load the same one, or none begins.

Every process loads while the others do, and none trains before all have confirmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ckptstore.distributed.resuming import JoinResume, LeadResume, Offer
from ckptstore.errors import (
    CheckpointStoreError,
    CorruptPayloadError,
    DistributedError,
    RefusedByLayerError,
    ResumeRefusedError,
)
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.system import messages
from ckptstore.training.job.fit_job import LOAD_LIMIT_S, FitJob

# How long a file system may take to show a process what another has made, in seconds.
SIGHT_LIMIT_S = 60.0
# Loads a checkpoint into a model; raises what `CheckpointStore.restore` raises.
Load = Callable[[Checkpoint], object]


class LedBeginning:
    """Process 0's side.

    Args:
        job: The processes.
        store: The identity of the store.
        is_intact: Reads a checkpoint's payload, and returns whether it is what was saved.
    """

    def __init__(self, job: FitJob, store: str, *, is_intact: Callable[[Checkpoint], bool]) -> None:
        self._job = job
        self._store = store
        self._is_intact = is_intact
        self._lead: LeadResume | None = None

    def load(self, load: Load, checkpoint: Checkpoint) -> None:
        """Offer a checkpoint and load it; returns once all processes have loaded it.

        Raises:
            CorruptPayloadError: It is damaged; another one may be offered.
            ResumeRefusedError: A process cannot begin; none begins.
            Exception: What `load` raised; another checkpoint may be offered.
        """
        lead = self._offer(checkpoint)
        try:
            load(checkpoint)
        except Exception as error:
            lead.object_to("mismatch" if _ends_the_search(error) else "unreadable", _text(error))
            self._job.agreements.drive(lead)
            if lead.state == "refused" and not _ends_the_search(error):
                raise lead.error() or error from error
            raise
        self._job.agreements.drive(lead)
        self._conclude(lead, checkpoint)

    @contextmanager
    def refused_on_error(self) -> Iterator[None]:
        """End it for all processes, with the reason, if the block raises before it is decided."""
        try:
            yield
        except BaseException as error:
            self._refuse(_text(error))
            raise

    def _refuse(self, reason: str) -> None:
        if self._lead is None:
            nothing = Offer(version=None, store=self._store, limit_s=LOAD_LIMIT_S)
            self._lead = self._job.session.lead_resume(nothing)
        if self._lead.state not in ("agreed", "refused"):
            with suppress(DistributedError):  # the error that is on its way tells more
                self._lead.refuse(reason)
                self._job.agreements.drive(self._lead)

    def from_scratch(self) -> None:
        """Offer to begin without a checkpoint, and wait until all have confirmed.

        Raises:
            ResumeRefusedError: A process cannot; none begins.
        """
        lead = self._offer(None)
        self._job.agreements.drive(lead)
        self._conclude(lead, None)

    def _offer(self, checkpoint: Checkpoint | None) -> LeadResume:
        offer = Offer(version=None, store=self._store, limit_s=LOAD_LIMIT_S)
        if checkpoint is not None:
            offer = replace(
                offer,
                version=checkpoint.version,
                digest=checkpoint.digest,
                checkpoint=checkpoint.to_json(),
            )
        if self._lead is None:
            self._lead = self._job.session.lead_resume(offer)
        else:
            self._lead.offer_next(offer)
        # No further: while it gathers the answers, this process loads.
        while self._lead.state in ("offering", "telling"):
            self._lead.step(time.monotonic())
        return self._lead

    def _conclude(self, lead: LeadResume, checkpoint: Checkpoint | None) -> None:
        if lead.state == "objected" and checkpoint is not None:
            objections = "; ".join(
                f"process {process}: {objection.reason}" for process, objection in lead.objections.items()
            )
            if not self._is_intact(checkpoint):
                raise CorruptPayloadError(path=checkpoint.path, reason=objections)
            # It is not damaged: that process sees another file, or its memory is at fault.
            lead.refuse(f"reads version {checkpoint.version} as it was saved, unlike {objections}")
            self._job.agreements.drive(lead)
        _raise_refusal(lead)


class JoinedBeginning:
    """The side of every other process.

    Args:
        job: The processes.
        path: The store's directory, as this process sees it.
    """

    def __init__(self, job: FitJob, path: Path) -> None:
        self._job = job
        self._path = path

    def load(self, load: Load) -> Checkpoint | None:
        """Load what process 0 offers, until all processes have loaded the same; None to begin without a checkpoint.

        Raises:
            ResumeRefusedError: A process cannot begin; none begins.
            Exception: What `load` raised, where that was no damage; the others are told.
        """
        join = self._job.session.join_resume(limit_s=LOAD_LIMIT_S)
        while True:
            self._job.agreements.drive(join)
            _raise_refusal(join)
            if join.state == "agreed":
                return self._offered(join)
            checkpoint = self._offered(join)
            if not self._sees_store():
                join.object_to(
                    "mismatch",
                    f"finds no store at {self._path}, although process 0 has opened one: each needs the same directory",
                )
                continue
            try:
                if checkpoint is not None:
                    load(checkpoint)
            except CorruptPayloadError as error:
                join.object_to("unreadable", error.reason)
                assert checkpoint is not None
                messages.log(
                    f"ckptstore: process {self._job.job.process} cannot read version {checkpoint.version}: "
                    f"{error.reason}; process 0 is told, and looks for an older one"
                )
            except Exception as error:
                join.object_to("mismatch", _text(error))
                self._job.agreements.drive(join)
                raise
            else:
                join.confirm()

    def _sees_store(self) -> bool:
        give_up = time.monotonic() + SIGHT_LIMIT_S
        while not Layout(self._path).manifest.exists():
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.05)
        return True

    def _offered(self, join: JoinResume) -> Checkpoint | None:
        assert join.offer is not None
        record = join.offer.checkpoint
        return None if record is None else Checkpoint.from_json(record, store=self._path)


def _ends_the_search(error: Exception) -> bool:
    """True for an error after which `ckptstore.store.resume.ResumePointLoader` looks at no older checkpoint."""
    if isinstance(error, CorruptPayloadError | RefusedByLayerError):
        return False
    return isinstance(error, CheckpointStoreError | MemoryError | OSError)


def _raise_refusal(side: LeadResume | JoinResume) -> None:
    error: ResumeRefusedError | None = side.error()
    if error is not None:
        raise error


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
