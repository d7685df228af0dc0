"""`JoinedStore`: the store as a process other than 0 has it: it writes its part of each payload, and has no queries."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack
from weakref import WeakKeyDictionary

from ckptstore.commit.joined_save import JoinedSave
from ckptstore.records import Checkpoint, EndReason, FinishedEpoch, Mode
from ckptstore.retention import Policy
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout, absolute
from ckptstore.store.model_adapter import adapter_for
from ckptstore.training.job.beginning import JoinedBeginning
from ckptstore.training.job.fit_job import FitJob

if TYPE_CHECKING:
    from ckptstore.background.save_queue import Backpressure, SaveQueue
    from ckptstore.commit.request import SaveRequest
    from ckptstore.formats.snapshot import Snapshot
    from ckptstore.store.model_adapter import Snapshots
    from ckptstore.store.reader import Ref
    from ckptstore.store.writer import SaveOptions


class JoinedStore:
    """Implementation of `ckptstore.training.job.fit_store.FitStore` that opens no manifest and takes no lock.

    What only the store's owner does, such as retention, process 0 does for all: here it does nothing.

    Args:
        path: The directory, as for `CheckpointStore`; process 0 makes it.
        job: The processes.

    Attributes:
        path: The directory, absolute.
        recorder: Records nothing: the attempt is process 0's.
    """

    def __init__(self, path: str | os.PathLike[str], job: FitJob) -> None:
        self.path: Path = absolute(path)
        self.recorder = _NoRecorder()
        self._job = job
        self._heartbeats: dict[str, Heartbeat] = {}
        self._joined = JoinedSave(job.session, Layout(self.path))
        self._snapshots: WeakKeyDictionary[Any, Snapshots] = WeakKeyDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._job.give_up(error)
        self.close()

    def close(self) -> None:
        """End this process's part in the job."""
        self._job.close()

    # --- saving ------------------------------------------------------------------------------------

    def save(self, model: Any, *, epoch: int, **options: Unpack[SaveOptions]) -> Checkpoint:
        """Save with all processes; as `CheckpointStore.save`. Metrics, tags, retention and the like are process 0's.

        Raises:
            SaveAbandonedError: There is no checkpoint.
            SaveEndUnknownError: Process 0 has not told how it ended.
        """
        return self.commit(*self.prepare(model, epoch=epoch, **options))

    def prepare(
        self, model: Any, *, epoch: int, snapshots: Snapshots | None = None, **options: Unpack[SaveOptions]
    ) -> tuple[Snapshot, SaveRequest]:
        """Take a snapshot of what this process holds; as `CheckpointStore.prepare`."""
        from ckptstore.commit.request import SaveRequest

        request = SaveRequest(
            run=options.get("run", "default"),
            epoch=epoch,
            batch=options.get("batch"),
            step=options.get("step"),
        )
        taken_by = snapshots or self._snapshots.setdefault(model, adapter_for(model).snapshots(self._job.job))
        snapshot = taken_by.take(
            model,
            format="sharded",
            optimizer=options.get("optimizer"),
            weights_only=options.get("weights_only", False),
            fit=options.get("fit"),
            resumable=options.get("resumable", True),
            in_epoch=request.batch is not None,
            objects=options.get("objects"),
        )
        return snapshot, request

    def commit(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Write this process's part of a save, and wait for its end.

        Raises:
            SaveAbandonedError: There is no checkpoint.
            SaveEndUnknownError: Process 0 has not told how it ended.
        """
        return self._joined.save(snapshot, self._job.numbered(request))

    def open_save_queue(self, run: str, *, backpressure: Backpressure = "replace") -> SaveQueue:
        """Return the queue that writes this process's parts in a thread."""
        from ckptstore.background.save_queue import SaveQueue

        return SaveQueue(self.path, None, backpressure="wait", job=self._job.session)

    # --- restoring ---------------------------------------------------------------------------------

    def restore(
        self, ref: Ref, model: Any, *, optimizer: Any = None, objects: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Restore the checkpoint that process 0 restores; as `CheckpointStore.restore`, but `ref` is not looked at.

        Raises:
            ResumeRefusedError: A process cannot; their models may differ, and none must train.
            PeerFailedError: Process 0 has found none.
        """
        load = partial(adapter_for(model).restore, model, optimizer=optimizer, objects=objects)
        checkpoint = JoinedBeginning(self._job, self.path).load(load)
        assert checkpoint is not None
        return checkpoint

    def resume(
        self,
        model: Any,
        run: str | None = None,
        *,
        optimizer: Any = None,
        objects: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None:
        """Restore the resume point that process 0 has found; as `CheckpointStore.resume`.

        Raises:
            ResumeRefusedError: A process cannot begin; none begins.
        """
        restore = adapter_for(model).restore
        load = partial(restore, model, optimizer=optimizer, objects=objects, generators=True)
        return JoinedBeginning(self._job, self.path).load(load)

    def begin(self, run: str) -> int:
        """Take part in the beginning of a run from scratch."""
        JoinedBeginning(self._job, self.path).load(_nothing_is_loaded)
        return 0

    def load_newest_resume_point(
        self, load: Callable[[Checkpoint], object], run: str | None = None, *, count_starts: bool = True
    ) -> Checkpoint | None:
        """Load the checkpoint that process 0 has found; None to begin without one.

        Raises:
            ResumeRefusedError: A process cannot begin; none begins.
        """
        return JoinedBeginning(self._job, self.path).load(load)

    # --- process 0's business ----------------------------------------------------------------------

    def claim(self, run: str) -> None:
        """Do nothing."""

    def beat(
        self,
        *,
        epoch: int,
        batch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        run: str = "default",
    ) -> None:
        """Do nothing: the run's heartbeat is process 0's."""

    def heartbeat(self, run: str) -> Heartbeat:
        """Return a heartbeat that writes nothing: the run's is process 0's."""
        return self._heartbeats.setdefault(run, Heartbeat(Layout(self.path), run, 0, sparse=True))

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Do nothing."""
        return []

    def record_epochs(self, run: str, epochs: Collection[FinishedEpoch]) -> None:
        """Do nothing."""

    def record_bad_loss(self, run: str, detail: Mapping[str, Any]) -> None:
        """Do nothing."""

    def roll_back(
        self,
        run: str,
        load: Callable[[Checkpoint], bool] | None,
        *,
        sound_step: int,
        detail: Mapping[str, Any],
    ) -> Checkpoint | None:
        """Return None: a fit by several processes refuses `on_bad_loss`, and does not roll back."""

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return None; see `load_newest_resume_point`."""

    def checkpoint_without_state(self, run: str | None = None) -> Checkpoint | None:
        """Return None: process 0 warns of it."""

    def best(self, metric: str, *, mode: Mode | None, run: str) -> Checkpoint | None:
        """Return None: the manifest is process 0's, which alone decides what is saved as the best."""


class _NoRecorder:
    """Implementation of `ckptstore.training.job.fit_store.FitRecorder`."""

    def begin(self, run: str, *, otherwise: EndReason = "finished") -> int | None:
        """Do nothing."""

    def plan(self, run: str, reason: EndReason, **detail: Any) -> None:
        """Do nothing."""

    def failed(self, error: BaseException, run: str | None = None) -> None:
        """Do nothing."""


def _nothing_is_loaded(checkpoint: Checkpoint) -> None:
    raise AssertionError(f"version {checkpoint.version} was offered to a run that begins from scratch")
