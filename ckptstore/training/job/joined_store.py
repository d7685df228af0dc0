"""`JoinedStore`: the store as a process other than 0 has it: it writes its part of each payload, and has no queries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack
from weakref import WeakKeyDictionary

from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout, absolute
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.writer import SaveOptions
from ckptstore.training.job.beginning import JoinedBeginning
from ckptstore.training.job.fit_job import FitJob

if TYPE_CHECKING:
    from ckptstore.formats.snapshot import Snapshot
    from ckptstore.store.model_adapter import Snapshots
    from ckptstore.store.reader import Ref


class JoinedStore:
    """The store of a loop by hand in every process but 0; it opens no manifest and takes no lock.

    Args:
        path: The directory, as for `CheckpointStore`; process 0 makes it.
        job: The processes.

    Attributes:
        path: The directory, absolute.
    """

    def __init__(self, path: str | os.PathLike[str], job: FitJob) -> None:
        self.path: Path = absolute(path)
        self._job = job
        self._joined = JoinedSave(job.session, Layout(self.path))
        self._snapshots: WeakKeyDictionary[Any, Snapshots] = WeakKeyDictionary()
        self._is_closed = False

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
        self._is_closed = True
        self._job.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise InvalidArgumentError(argument="store", value=str(self.path), reason="it is closed")

    # --- saving ------------------------------------------------------------------------------------

    def save(self, model: Any, *, epoch: int, **options: Unpack[SaveOptions]) -> Checkpoint:
        """Save with all processes; as `CheckpointStore.save`. Metrics, tags, retention and the like are process 0's.

        Raises:
            SaveAbandonedError: There is no checkpoint.
            SaveEndUnknownError: Process 0 has not told how it ended.
        """
        unknown = options.keys() - SaveOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"save() got an unexpected keyword argument {min(unknown)!r}")
        self._require_open()
        # Before anything can fail here: each process counts the same saves.
        number = self._job.session.next_save()
        try:
            snapshot, request = self.prepare(model, epoch=epoch, **options)
        except Exception as error:
            step = options.get("step")
            self._joined.withdraw(SaveRequest(run="", epoch=epoch, step=step, job_save=number), error)
            raise
        return self.commit(snapshot, replace(request, job_save=number))

    def prepare(
        self, model: Any, *, epoch: int, snapshots: Snapshots | None = None, **options: Unpack[SaveOptions]
    ) -> tuple[Snapshot, SaveRequest]:
        """Take a snapshot of what this process holds; as `CheckpointStore.prepare`."""
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

    # --- restoring ---------------------------------------------------------------------------------

    def restore(
        self, ref: Ref, model: Any, *, optimizer: Any = None, objects: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Restore the checkpoint that process 0 restores; as `CheckpointStore.restore`, but `ref` is not looked at.

        Raises:
            ResumeRefusedError: A process cannot; their models may differ, and none must train.
            PeerFailedError: Process 0 has found none.
        """
        self._require_open()
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
        self._require_open()
        restore = adapter_for(model).restore
        load = partial(restore, model, optimizer=optimizer, objects=objects, generators=True)
        return JoinedBeginning(self._job, self.path).load(load)

    # --- process 0's business ----------------------------------------------------------------------

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

    def __getattr__(self, name: str) -> Any:
        """Refuse what only process 0 has: the manifest, and what is asked of it."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"the store of process {self._job.job.process} has save, resume, restore, beat and close; for {name!r} ask "
            "process 0, or CheckpointStore(path, read_only=True)"
        )
