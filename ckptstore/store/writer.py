"""What a store does to save: at once, or taken apart for whoever saves beside the caller."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ckptstore.errors import ReadOnlyError
from ckptstore.records import Checkpoint, Format, Mode
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.reader import StoreQueries

if TYPE_CHECKING:
    from keras import Model, Optimizer

    from ckptstore.background.save_queue import Backpressure, SaveQueue
    from ckptstore.commit.committer import Committer
    from ckptstore.commit.request import SaveRequest
    from ckptstore.commit.run_ownership import Claims
    from ckptstore.formats.snapshot import FitState, Snapshot
    from ckptstore.retention import Policy
    from ckptstore.store.model_adapter import Snapshots


class SaveOptions(TypedDict, total=False):
    """What `save` may be told beside the epoch."""

    batch: int | None
    step: int | None
    metrics: Mapping[str, Any] | None
    run: str
    tags: Collection[str]
    extra: Mapping[str, Any] | None
    format: Format
    optimizer: Optimizer | None
    weights_only: bool
    resumable: bool
    publish: str | os.PathLike[str] | None
    keep: Policy | None
    monitor: tuple[str, Mode] | None
    fit: FitState | None
    notes: Mapping[str, Mapping[str, Any]]


class StoreSaving(StoreQueries):
    """The part of a store that saves."""

    read_only: bool
    _committer: Committer
    _claims: Claims

    @abstractmethod
    def claim(self, run: str) -> None:
        """Become the writer of a run."""

    def _check_writable(self, operation: str) -> None:
        if self.read_only:
            raise ReadOnlyError(store=self.path, operation=operation)

    def save(
        self,
        model: Model,
        *,
        epoch: int,
        batch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        run: str = "default",
        tags: Collection[str] = (),
        extra: Mapping[str, Any] | None = None,
        format: Format = "keras",
        optimizer: Optimizer | None = None,
        weights_only: bool = False,
        resumable: bool = True,
        publish: str | os.PathLike[str] | None = None,
        keep: Policy | None = None,
        monitor: tuple[str, Mode] | None = None,
        fit: FitState | None = None,
    ) -> Checkpoint:
        """Save a model; when this returns, the checkpoint is durable, indexed, and shown at `publish`.

        A crash meanwhile leaves all older checkpoints as they were, and of this one nothing or the whole.

        Args:
            model: A built and compiled Keras model.
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the last finished train batch, or None at the epoch's end.
            step: Finished train batches of the run so far, or None.
            metrics: Scalars by name: numbers, or 0-d tensors.
            run: The run that it belongs to; this store writes it until `close`.
            tags: Names for it; one that another checkpoint has moves.
            extra: JSON to keep beside it.
            format: ``"keras"`` for the whole model, ``"weights"``, or ``"h5"`` for Keras' older whole-model file.
            optimizer: The optimizer of a loop written by hand, for a model that is not compiled.
            weights_only: True to save no optimizer and no training state.
            resumable: False to save model and optimizer, but no training state: it is never a resume point.
            publish: A path at which the checkpoint is shown, by hard link where possible.
            keep: What stays of the run after this save; None keeps everything.
            monitor: A metric that is watched and its better direction: its best is never removed.
            fit: What a callback keeps of the running fit, for its resume.

        Raises:
            InvalidArgumentError: An argument cannot be used; nothing changed.
            ModelNotReadyError: The model is not built or not compiled; nothing changed.
            RunLockedError: Another writer has the run.
            DiskFullError: There is no room; older checkpoints are as they were.
            UnfinishedSaveError: It is saved (`.checkpoint`), but could not be shown, or retention failed.
            StorageError: The disk failed; older checkpoints are as they were.
        """
        snapshot, request = self.prepare(
            model,
            epoch=epoch,
            batch=batch,
            step=step,
            metrics=metrics,
            run=run,
            tags=tags,
            extra=extra,
            format=format,
            optimizer=optimizer,
            weights_only=weights_only,
            resumable=resumable,
            publish=publish,
            keep=keep,
            monitor=monitor,
            fit=fit,
        )
        return self.commit(snapshot, request)

    def prepare(
        self,
        model: Model,
        *,
        epoch: int,
        snapshots: Snapshots | None = None,
        **options: Unpack[SaveOptions],
    ) -> tuple[Snapshot, SaveRequest]:
        """Check what `save` is asked for and take the model apart; nothing is written, and nothing copied.

        Args:
            model: As for `save`.
            epoch: Likewise.
            snapshots: What took the model apart at earlier saves of the same fit, and knows what stays the same.
            **options: As for `save`; and `notes`, events that are recorded with the checkpoint, by their kinds.

        Returns:
            The snapshot, whose arrays are the model's own, and the request: for `commit`, or for the ring of
            `saving_beside`.

        Raises:
            InvalidArgumentError: As `save`; likewise `ModelNotReadyError` and `RunLockedError`.
        """
        from ckptstore.commit.request import checked_request

        run, format = options.get("run", "default"), options.get("format", "keras")
        request = checked_request(
            self.path,
            run=run,
            format=format,
            position=(epoch, options.get("batch"), options.get("step")),
            metrics=options.get("metrics"),
            tags=options.get("tags", ()),
            extra=options.get("extra"),
            publish=options.get("publish"),
            keep=options.get("keep"),
            monitor=options.get("monitor"),
            notes=options.get("notes", {}),
        )
        self._check_writable("save")
        snapshot = (snapshots or adapter_for(model).snapshots()).take(
            model,
            format=format,
            optimizer=options.get("optimizer"),
            weights_only=options.get("weights_only", False),
            fit=options.get("fit"),
            resumable=options.get("resumable", True),
            in_epoch=options.get("batch") is not None,
        )
        self.claim(run)
        return snapshot, request

    def commit(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Save what `prepare` returned, before the model changes; see `save`."""
        return self._committer.commit(snapshot, request)

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Remove a run's checkpoints that neither `policy` nor the store's own rules keep; returns their versions."""
        self._check_writable("retain")
        return self._committer.retain(run, policy)

    def saving_beside(self, run: str, *, backpressure: Backpressure = "replace") -> SaveQueue:
        """Become the writer of a run, and return what saves it beside the caller, in another process where possible.

        The caller ends it before it closes the store. See `ckptstore.background.save_queue.SaveQueue`.

        Raises:
            RunLockedError: Another writer has the run.
        """
        from ckptstore.background.save_queue import SaveQueue

        self.claim(run)
        return SaveQueue(self.path, self._claims.lock_of(run), backpressure=backpressure)
