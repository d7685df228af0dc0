"""`LeadingStore`: the store as process 0 of several that train one model together has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack
from weakref import WeakKeyDictionary

from ckptstore.errors import CorruptPayloadError
from ckptstore.records import Checkpoint
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.store import CheckpointStore
from ckptstore.training.job.beginning import LedBeginning
from ckptstore.training.job.fit_job import FitJob

if TYPE_CHECKING:
    from ckptstore.background.save_queue import Backpressure, SaveQueue
    from ckptstore.commit.led_save import LedSave
    from ckptstore.commit.request import SaveRequest
    from ckptstore.distributed.session import JobSession
    from ckptstore.formats.snapshot import Snapshot
    from ckptstore.store.model_adapter import Snapshots
    from ckptstore.store.reader import Ref
    from ckptstore.store.writer import SaveOptions


class LeadingStore(CheckpointStore):
    """A store whose saves and resumes all processes of a job take part in: each calls the same, in the same order.

    Args:
        path: The directory, as for `CheckpointStore`.
        job: The processes.
    """

    def __init__(self, path: str | os.PathLike[str], job: FitJob) -> None:
        super().__init__(path)
        self._job = job
        self._snapshots: WeakKeyDictionary[Any, Snapshots] = WeakKeyDictionary()

    # --- saving ------------------------------------------------------------------------------------

    def prepare(
        self, model: Any, *, epoch: int, snapshots: Snapshots | None = None, **options: Unpack[SaveOptions]
    ) -> tuple[Snapshot, SaveRequest]:
        """Take a snapshot of what this process holds; as `CheckpointStore.prepare`. The format is ``"sharded"``."""
        taken_by = snapshots or self._snapshots.setdefault(model, adapter_for(model).snapshots(self._job.job))
        options["format"] = "sharded"
        return super().prepare(model, epoch=epoch, snapshots=taken_by, **options)

    def commit(self, snapshot: Snapshot, request: SaveRequest, *, led: LedSave | None = None) -> Checkpoint:
        """Save what `prepare` returned, together with the other processes; raises as `CheckpointStore.commit`.

        It is tried again as `with_retries` says, since all of them must try again together.
        """
        from ckptstore.commit.led_save import LedSave
        from ckptstore.commit.retry import with_retries

        if led is None:
            request = self._job.numbered(request)
            with LedSave(self._job.session, request.number_in_job()) as found:
                return self.commit(snapshot, request, led=found)
        return with_retries(partial(super().commit, snapshot, request, led=led))

    def _led(self) -> AbstractContextManager[LedSave | None]:
        """Take the number of a save by hand, and tell the others if it cannot even be prepared."""
        from ckptstore.commit.led_save import LedSave

        return LedSave(self._job.session, self._job.session.next_save())

    def open_save_queue(
        self, run: str, *, backpressure: Backpressure = "replace", job: JobSession | None = None
    ) -> SaveQueue:
        """Return the queue that saves a run in a thread of this process, since only it can reach the others.

        Nothing is replaced in it: which save is left out would be another on each process.
        """
        return super().open_save_queue(run, backpressure="wait", job=self._job.session)

    # --- restoring ---------------------------------------------------------------------------------

    def restore(
        self, ref: Ref, model: Any, *, optimizer: Any = None, objects: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Restore a checkpoint on all processes; `ref` is what process 0 says.

        Raises:
            ResumeRefusedError: A process cannot; their models may differ, and none must train.
            CheckpointStoreError: As `CheckpointStore.restore`.
        """
        beginning = self._beginning()
        with beginning.refused_on_error():
            load = partial(adapter_for(model).restore, model, optimizer=optimizer, objects=objects)
            checkpoint = self.get(ref)
            beginning.load(load, checkpoint)
            return checkpoint

    def begin(self, run: str) -> int:
        """Begin a run again, on all processes."""
        beginning = self._beginning()
        with beginning.refused_on_error():
            version = super().begin(run)
            beginning.from_scratch()
            return version

    def load_newest_resume_point(
        self, load: Callable[[Checkpoint], object], run: str | None = None, *, count_starts: bool = True
    ) -> Checkpoint | None:
        """Find the newest resume point that all processes can load, and have each load it.

        Raises:
            ResumeRefusedError: A process cannot begin; none begins.
            CheckpointStoreError: As `CheckpointStore.load_newest_resume_point`.
        """
        beginning = self._beginning()

        def load_together(checkpoint: Checkpoint) -> None:
            beginning.load(load, checkpoint)

        with beginning.refused_on_error():
            found = super().load_newest_resume_point(load_together, run, count_starts=count_starts)
            if found is None:
                beginning.from_scratch()
            return found

    def _beginning(self) -> LedBeginning:
        return LedBeginning(self._job, self.uuid, is_intact=_is_intact)

    # --- the end -----------------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._job.give_up(error)
        super().__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the store, and end this process's part in the job."""
        try:
            super().close()
        finally:
            self._job.close()


def _is_intact(checkpoint: Checkpoint) -> bool:
    from ckptstore.formats.payload import open_checkpoint

    try:
        with open_checkpoint(checkpoint):
            return True
    except CorruptPayloadError:
        return False
