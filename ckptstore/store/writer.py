"""`StoreWriter`: saves checkpoints, owns runs, names and removes checkpoints; a `StoreReader` open for writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ckptstore.errors import ReadOnlyError
from ckptstore.records import Checkpoint, FinishedEpoch, Format, Mode
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.reader import Ref, StoreReader
from ckptstore.system.messages import held_back
from ckptstore.validation import check_objects, check_tag

if TYPE_CHECKING:
    from keras import Model, Optimizer

    from ckptstore.background.save_queue import Backpressure, SaveQueue
    from ckptstore.commit.committer import Committer
    from ckptstore.commit.led_save import LedSave
    from ckptstore.commit.request import SaveRequest
    from ckptstore.commit.retention.prune import Pruned
    from ckptstore.commit.run_ownership import RunOwnership
    from ckptstore.distributed.session import JobSession
    from ckptstore.formats.snapshot import FitState, Snapshot
    from ckptstore.retention.policy import KeepFunction, Policy
    from ckptstore.store.attempts.recorder import AttemptRecorder
    from ckptstore.store.model_adapter import Snapshots


class SaveOptions(TypedDict, total=False):
    """Options of `save` besides model and epoch."""

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
    objects: Mapping[str, Any] | None
    notes: Mapping[str, Mapping[str, Any]]
    earlier_epochs: Collection[FinishedEpoch]
    rollbacks: tuple[tuple[int, int], ...]


class StoreWriter(StoreReader):
    """The writing half of `ckptstore.CheckpointStore`: saves, run ownership, tags, pins and retention.

    Every method raises `ReadOnlyError` in a store that is open for reading, but `prune` with ``dry_run=True``.

    Attributes:
        read_only: True in a store that is open for reading only.
        recorder: Records the attempts that this process makes at its runs.
    """

    read_only: bool
    recorder: AttemptRecorder
    _layout: Layout
    _committer: Committer
    _ownership: RunOwnership
    _heartbeats: dict[str, Heartbeat]

    def _check_writable(self, operation: str) -> None:
        if self.read_only:
            raise ReadOnlyError(store=self.path, operation=operation)

    # --- saving --------------------------------------------------------------------------------------

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
        objects: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Save a model; when this returns, the checkpoint is durable, indexed, and shown at `publish`.

        A crash during the save leaves all older checkpoints as they were, and this one either complete or not at all.

        Args:
            model: A built Keras model; compiled, or with `optimizer`, `objects` or `weights_only`.
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the last finished train batch, or None at the epoch's end.
            step: Finished train batches of the run so far, or None.
            metrics: Scalars by name: numbers, or 0-d tensors.
            run: The run that the checkpoint belongs to; this store owns the run until `close`.
            tags: Names for the checkpoint; a tag that another checkpoint has moves.
            extra: JSON to store with the checkpoint.
            format: ``"keras"`` for the whole model, ``"weights"``, ``"h5"`` for Keras' older whole-model file, or
                ``"sharded"`` for the whole model in a directory of parts.
            optimizer: The optimizer of a custom training loop, for a model that is not compiled.
            weights_only: True to save neither optimizer nor training state.
            resumable: False to save model and optimizer without training state: never a resume point.
            publish: A path at which the checkpoint is shown, by hard link where possible.
            keep: The retention policy applied to the run after this save; None keeps everything.
            monitor: A watched metric and its better direction: the best by it is never removed.
            fit: State of the running fit that a callback needs to resume it.
            objects: Objects of a loop written by hand, by name, to be passed to `resume` under the same names: what
                has ``state_dict`` and ``load_state_dict``, or ``get_state`` and ``set_state`` (an optimizer, scheduler,
                scaler or loader of torch); random generators; optimizers, metrics, layers and models of Keras; and
                trees of arrays and plain values (an optax state). They are stored without pickle.

        Raises:
            InvalidArgumentError: An argument cannot be used, or a value in `objects` cannot be kept; nothing changed.
            ModelNotReadyError: The model is not built or not compiled; nothing changed.
            RunLockedError: Another writer owns the run.
            DiskFullError: The disk is full; older checkpoints are as they were.
            UnfinishedSaveError: The checkpoint is saved (`.checkpoint`), but could not be shown, or retention failed.
            StorageError: The disk failed; older checkpoints are as they were.
        """
        with self._led() as led:
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
                objects=objects,
            )
            heartbeat = self._beat_of_loop(run)
            heartbeat.beat(epoch, batch, step, metrics)
            with heartbeat.during("saving"):
                return self.commit(snapshot, request, led=led)

    def _led(self) -> AbstractContextManager[LedSave | None]:
        """Return what tells other processes of a save, from before it is prepared; here there are none."""
        return nullcontext()

    def prepare(
        self,
        model: Model,
        *,
        epoch: int,
        snapshots: Snapshots | None = None,
        **options: Unpack[SaveOptions],
    ) -> tuple[Snapshot, SaveRequest]:
        """Check the arguments of a save and take a snapshot of the model; writes nothing and copies nothing.

        Args:
            model: As for `save`.
            epoch: As for `save`.
            snapshots: The snapshot maker of earlier saves of the same fit, which reuses what does not change.
            **options: As for `save`; and `notes`, events to record with the checkpoint, by kind, and
                `earlier_epochs`, which ended before and whose metrics the manifest does not have yet; `rollbacks`, of
                the run so far.

        Returns:
            The snapshot, whose arrays are the model's own, and the request: for `commit`, or for the queue of
            `open_save_queue`.

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
            earlier_epochs=options.get("earlier_epochs", ()),
            rollbacks=options.get("rollbacks", ()),
        )
        objects = check_objects(
            options.get("objects"),
            weights_only=options.get("weights_only", False),
            resumable=options.get("resumable", True),
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
            objects=objects,
        )
        self.claim(run)
        return snapshot, request

    def commit(self, snapshot: Snapshot, request: SaveRequest, *, led: LedSave | None = None) -> Checkpoint:
        """Save what `prepare` returned, before the model changes; raises as `save` does.

        Args:
            snapshot: The snapshot.
            request: The request.
            led: Of a save by several processes, process 0's side; its caller ends it.
        """
        with held_back():
            return self._committer.commit(snapshot, request, led=led)

    def open_save_queue(
        self, run: str, *, backpressure: Backpressure = "replace", job: JobSession | None = None
    ) -> SaveQueue:
        """Own a run, and return the queue that saves it in the background, in another process where possible.

        The caller closes the queue before it closes the store. See `ckptstore.background.save_queue.SaveQueue`.

        Raises:
            RunLockedError: Another writer owns the run.
        """
        from ckptstore.background.save_queue import SaveQueue

        self.claim(run)
        return SaveQueue(self.path, self._ownership.lock_of(run), backpressure=backpressure, job=job)

    # --- runs ----------------------------------------------------------------------------------------

    def claim(self, run: str) -> None:
        """Become the only writer of a run, until `close`; saving does this by itself.

        Raises:
            RunLockedError: Another writer owns the run; names it.
        """
        self._check_writable("claim")
        self._ownership.claim(run)

    def heartbeat(self, run: str, *, sparse: bool = False) -> Heartbeat:
        """Return the heartbeat of this store's training of a run, which it owns; it ends when the store is closed.

        With it an attempt begins, unless one has.

        Args:
            run: The run.
            sparse: Whether one that begins now will give signs of life with saves alone.
        """
        found = self._heartbeats.get(run)
        if found is None:
            self.claim(run)
            # Before the heartbeat of the attempt before is overwritten, which tells how that ended.
            attempt = self.recorder.begin(run) or 0
            found = self._heartbeats[run] = Heartbeat.begin(self._layout, run, attempt, sparse=sparse)
        return found

    def _beat_of_loop(self, run: str) -> Heartbeat:
        return self.heartbeat(run, sparse=True)

    def beat(
        self,
        *,
        epoch: int,
        batch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        run: str = "default",
    ) -> None:
        """Tell where a training loop written by hand stands, after each batch; `runs` and ``ckptstore watch`` show it.

        From the first call on, a long silence tells that the loop hangs, and ``ckptstore run`` restarts it; so call it
        in a validation too. It costs about a microsecond, and a small write every second at most, which is not synced.
        A disk that refuses that write is reported once; the training is not affected. A crash leaves the last position.

        Args:
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the last finished train batch, or None at the epoch's end.
            step: Finished train batches of the run so far, or None.
            metrics: Logs; what is not a `float` already is passed over, so that no device is waited for.
            run: The run; this store owns it until `close`.

        Raises:
            TypeError: A position is not an integer.
            RunLockedError: Another writer owns the run.
            ReadOnlyError: The store is open for reading.
        """
        position = (
            index(epoch),
            None if batch is None else index(batch),
            None if step is None else index(step),
        )
        heartbeat = self._heartbeats.get(run) or self.heartbeat(run)
        heartbeat.sparse = False
        heartbeat.beat(*position, metrics)

    def begin(self, run: str) -> int:
        """Begin a run from scratch, and own it; returns the beginning's number, from 1.

        The checkpoints of earlier beginnings stay and can be queried, but `resume` and `resume_point` never return to
        them: until something is saved after it, there is nothing to resume from. A crash during the call
        leaves the beginning recorded, or the run as it was.

        Raises:
            RunLockedError: Another writer owns the run.
        """
        self.claim(run)
        return self._ownership.begin(run)

    def watch(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Record the better direction of metrics that a run watches; directions already recorded stay."""
        self._check_writable("watch")
        known = self._manifest.runs.monitors(run)
        wanted = {metric: mode for metric, mode in monitors.items() if metric not in known}
        if wanted:
            with store_lock(self._layout.locks):
                self._manifest.runs.set_monitors(run, wanted)

    def record_epochs(self, run: str, epochs: Collection[FinishedEpoch]) -> None:
        """Record the metrics of epochs that no checkpoint will bring any more, since the training is over.

        They are recorded with the run's newest checkpoint; of a run without checkpoints nothing is recorded. A crash
        leaves all of them recorded, or none.

        Args:
            run: The run, which this store owns.
            epochs: The epochs.
        """
        self._check_writable("record_epochs")
        with store_lock(self._layout.locks):
            self._manifest.epochs.add(run, epochs)

    def roll_back(
        self,
        run: str,
        load: Callable[[Checkpoint], bool] | None,
        *,
        sound_step: int,
        detail: Mapping[str, Any],
    ) -> Checkpoint | None:
        """Find the newest resume point at which a run's losses were sound, and record why it is looked for.

        Later ones stay, but are no resume points any more, and never the best. A crash leaves them as they were.

        Args:
            run: The run, which this store owns.
            load: Brings a checkpoint into the model, and returns False if its weights are not finite; None where the
                training stops.
            sound_step: Finished batches when the losses were last sound.
            detail: What the event says; its kind is ``rolled_back``, or ``bad_loss`` where nothing was loaded.
        """
        from ckptstore.store.rollback import roll_back

        self._check_writable("roll_back")
        return roll_back(self._layout, self._manifest, run, load, sound_step=sound_step, detail=detail)

    def record_bad_loss(self, run: str, detail: Mapping[str, Any]) -> None:
        """Record a loss that went bad, where the training continues with it."""
        from ckptstore.store.rollback import BAD_LOSS

        self._check_writable("record_bad_loss")
        with store_lock(self._layout.locks):
            self._manifest.events.add(BAD_LOSS, run=run, detail=detail)

    # --- names and pins ------------------------------------------------------------------------------

    def tag(self, ref: Ref, name: str) -> None:
        """Give a checkpoint a name by which `get` finds it; a tag that another checkpoint has moves, atomically.

        `events` of the kinds ``"tagged"`` and ``"untagged"`` tell which checkpoint had a tag when. A crash leaves the
        tag where it was, or where it is to be.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            InvalidArgumentError: The name reads as another ref, or is not printable text.
        """
        self._check_writable("tag")
        check_tag(name)
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.tags.put(version, name)

    def untag(self, name: str) -> int:
        """Remove a tag; returns the version of the checkpoint that had it, which stays.

        Raises:
            CheckpointNotFoundError: No checkpoint has the tag.
        """
        self._check_writable("untag")
        with store_lock(self._layout.locks):
            return self._manifest.tags.remove(name)

    def pin(self, ref: Ref, pinned: bool = True) -> None:
        """Keep a checkpoint whatever a retention policy says; ``pinned=False`` ends that.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
        """
        self._check_writable("pin")
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.checkpoints.pin(version, pinned)

    # --- retention -----------------------------------------------------------------------------------

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Remove a run's checkpoints that neither `policy` nor the store's own rules keep; returns their versions."""
        self._check_writable("retain")
        return self._committer.retain(run, policy)

    def prune(
        self, policy: Policy | KeepFunction, *, run: str | None = None, dry_run: bool = False
    ) -> Pruned:
        """Remove what a policy does not keep, of one run or of each; returns what was removed, what stays and why.

        Only checkpoints whose payload is there with its size count. These always stay, whatever the policy says: the
        best of every metric that a callback watched, the newest two, the newest two that can be resumed from, the one
        that the run was resumed from last, pinned checkpoints, and those that a published path shows.

        A crash leaves all checkpoints, or those that stay and rows marked for deletion; the next opening for writing
        removes these.

        Args:
            policy: Such as ``keep_last(3) | keep_best("val_loss", 2)``; or a function of a run's checkpoints, oldest
                first, that returns those, or the versions, that stay.
            run: The run; None for each run by itself.
            dry_run: Change nothing; also possible in a store that is open for reading.

        Raises:
            InvalidArgumentError: The policy keeps nothing of a run, contradicts the direction in which the run watches
                a metric, or is a budget too small for the best and the resume point; nothing was removed.
            MetricNotFoundError: The policy looks at a metric that a run does not have; nothing was removed.
            RunNotFoundError: There is no such run.

        Example:
            >>> import tempfile
            >>> from ckptstore import CheckpointStore, keep_best, keep_last
            >>> with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder) as store:
            ...     store.prune(keep_last(3) | keep_best("val_loss", 2), dry_run=True).removed
            []
        """
        from ckptstore.commit.retention.prune import prune

        if not dry_run:
            self._check_writable("prune")
        return prune(self._layout, self._manifest, policy, run=run, dry_run=dry_run)
