"""The commit protocol: payload, its name, manifest row, published path, retention; in this order and no other.

A checkpoint exists from the instant its manifest transaction is committed. Files that a crash leaves before that are
swept or adopted when the store is next opened for writing; steps that it leaves undone after that are finished then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.commit.directories import restore_directories
from ckptstore.commit.earlier_epochs import EARLIER_EPOCHS
from ckptstore.commit.request import SaveRequest
from ckptstore.commit.retention.deferred_mark import DeferredMark
from ckptstore.commit.retention.deletion import remove_marked
from ckptstore.commit.retention.runner import RetentionRunner
from ckptstore.commit.rollbacks import ROLLBACKS
from ckptstore.errors import (
    CheckpointStoreError,
    DiskFullError,
    SaveAbandonedError,
    SaveInProgressError,
    StorageError,
    StoreLockedError,
    StoreRemovedError,
    UnfinishedSaveError,
)
from ckptstore.errors.save_failures import cause_of_failure
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.checks import RetentionCheck
from ckptstore.records import Checkpoint, NewCheckpoint, json_number, json_time
from ckptstore.retention import Policy
from ckptstore.storage.layout import Layout, relative_to_store
from ckptstore.storage.locks import store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.names import file_of_payload, payload_name
from ckptstore.storage.reserve import release_and_retry

if TYPE_CHECKING:
    from ckptstore.commit.led_save import LedSave
    from ckptstore.formats.snapshot import Snapshot

# Version of the description inside payloads.
_DESCRIPTION_VERSION = 1
_REMOVING = "removing what the policy does not keep"
_Result = TypeVar("_Result")


class Committer:
    """Writes checkpoints into one store, one at a time.

    Args:
        layout: The store's paths.
        manifest: The store's manifest, open for writing.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._retention = RetentionRunner(layout, manifest)
        self._payloads = payloads_at(layout)
        self._session = self._payloads.session()
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._owner_thread: int | None = None
        # Versions whose payload is deleted, and whose row is dropped in the next transaction.
        self._dropped: list[int] = []
        # Checkpoints whose payload is still to be deleted, and the save that a failure of that is reported for.
        self._marked: list[Checkpoint] = []
        self._saved: Checkpoint | None = None

    def commit(
        self, snapshot: Snapshot, request: SaveRequest, *, removing: bool = True, led: LedSave | None = None
    ) -> Checkpoint:
        """Save a snapshot; when this returns, the checkpoint is durable, indexed and shown.

        A crash before the manifest's COMMIT leaves no checkpoint, or the complete one; a crash after it leaves the
        complete one.

        Args:
            snapshot: The snapshot of the model.
            request: The save to make of it.
            removing: False to leave the payloads that `request.keep` lets expire in place until `remove` is called:
                deleting them may take the disk as long as the save. They are no longer checkpoints.
            led: Of a save by several processes, process 0's side; its caller ends it.

        Raises:
            DiskFullError: The disk is full, even after removing what `request.keep` lets expire; nothing else changed.
            SaveAbandonedError: Another process could not write its part, or did not in time; older checkpoints are as
                they were.
            UnfinishedSaveError: The checkpoint is saved, but could not be shown, or retention failed.
            StorageError: The disk failed; older checkpoints are as they were.
            StoreLockedError: The store's lock was not free in time; nothing changed.
            RunTakenOverError: The run was claimed here, and another process has claimed it since; nothing changed.
            StoreRemovedError: The store was removed, or replaced, since it was opened; nothing is made in its place.
        """
        with self._exclusive():
            mark = self._deferred_mark(request)
            try:
                checkpoint = self._save(snapshot, request, mark, led)
            except (DiskFullError, SaveAbandonedError) as error:
                if cause_of_failure(error) != "disk_full" or not self._make_room(request):
                    raise
                mark = self._deferred_mark(request)
                checkpoint = self._save(snapshot, request, mark, led)
            if request.publish is not None:
                self._after_commit(
                    checkpoint,
                    f"showing it at {request.publish}",
                    partial(self._publish, checkpoint, request.publish, mark),
                )
            if request.keep is not None:
                choose = partial(self._expired, request.run, request.keep, mark)
                self._marked += self._after_commit(checkpoint, _REMOVING, choose)
            self._saved = checkpoint
            if removing:
                self._remove()
            return checkpoint

    def remove(self) -> None:
        """Delete what expired in the last commit; does nothing if that is done.

        A crash before or during that leaves marked rows; the next opening for writing finishes.

        Raises:
            UnfinishedSaveError: A payload could not be deleted; the error's checkpoint is the one of that commit.
        """
        with self._exclusive():
            self._remove()

    def _remove(self) -> None:
        if self._saved is not None:
            self._after_commit(self._saved, _REMOVING, self._unlink)

    def _deferred_mark(self, request: SaveRequest) -> DeferredMark | None:
        """Return the mark for the save's own last transaction: one of its own would cost four syncs."""
        return None if request.keep is None else self._retention.deferred_mark(request.run, request.keep)

    def _save(
        self, snapshot: Snapshot, request: SaveRequest, mark: DeferredMark | None, led: LedSave | None
    ) -> Checkpoint:
        version = self._begin(request.run)
        upload = self._session.begin(payload_name(version, request.run, snapshot.format))
        try:
            fields = self._description(snapshot, version, request)
            if led is not None:
                snapshot = led.announce(snapshot, version, upload, fields, request.step)
            self._write(snapshot, fields, upload)
            check = None if mark is None or request.publish is not None else mark.check
            checkpoint = self._insert(snapshot, version, request, upload, check=check)
        except BaseException as error:
            try:
                if led is not None:
                    led.failed(error)
            finally:
                upload.abort()
            raise
        if led is not None:
            led.committed(checkpoint)
        return checkpoint

    def _make_room(self, request: SaveRequest) -> bool:
        """Remove now what the policy would remove after the save; returns True if anything was removed."""
        if request.keep is None:
            return False
        try:
            return bool(self._remove_expired(request.run, request.keep))
        except DiskFullError:
            return False

    def _after_commit(self, checkpoint: Checkpoint, what: str, work: Callable[[], _Result]) -> _Result:
        """Do a step that follows the COMMIT: if it fails, the error says that the checkpoint exists."""
        try:
            return work()
        except Exception as error:
            # Any error, since the user may have written the policy.
            raise UnfinishedSaveError(checkpoint=checkpoint, undone=what, error=error) from error

    def close(self) -> None:
        """End this writer's lease, and drop the rows of deleted payloads.

        A crash before that leaves rows marked ``deleting``; the next opening for writing drops them.
        """
        if self._pid != os.getpid():
            return
        self._payloads.wait_until_freed()
        if not self._session.is_open and not self._dropped:
            return
        try:
            with self._locked():
                self._session.close()
                if self._dropped:
                    # If this fails, the next opening does it; no saved checkpoint depends on it.
                    with suppress(StorageError, StoreLockedError):
                        release_and_retry(
                            self._layout.reserve, partial(self._manifest.checkpoints.remove, self._dropped)
                        )
                    self._dropped = []
        except StoreRemovedError:
            self._session.close()  # whoever saves hears of it, and there is nothing left to end

    def _begin(self, run: str) -> int:
        """Reserve a version, and prove that this writer is alive."""
        # This save can use the space that earlier ones have freed.
        self._payloads.wait_until_freed()
        with self._locked():
            restore_directories(self._layout, self._manifest)
            self._session.renew()
            version = self._manifest.reserve_version(run=run, dropping=self._dropped)
            self._dropped = []
            return version

    def _write(self, snapshot: Snapshot, fields: dict[str, Any], upload: Upload) -> None:
        from ckptstore.formats import payload  # imports numpy and h5py, which queries do not need

        payload.encode(snapshot, fields).write_to(upload)

    def _description(self, snapshot: Snapshot, version: int, request: SaveRequest) -> dict[str, Any]:
        return {
            "ckptstore": _DESCRIPTION_VERSION,
            "store": self._manifest.uuid,
            "version": version,
            "run": request.run,
            "beginning": self._manifest.beginnings.number(request.run, version),
            "epoch": request.epoch,
            "batch": request.batch,
            "step": request.step,
            "metrics": {name: json_number(value) for name, value in request.metrics.items()},
            EARLIER_EPOCHS: [epoch.to_json() for epoch in request.earlier_epochs],
            "created_at": json_time(request.created_at),
            "tags": list(request.tags),
            "format": snapshot.format,
            "resumable": snapshot.state is not None,
            "extra": request.extra,
            "published": self._published_path(request),
            # Only here does it outlive the manifest which of the earlier checkpoints a rollback found unsound.
            **({ROLLBACKS: [list(steps) for steps in request.rollbacks]} if request.rollbacks else {}),
        }

    def _insert(
        self,
        snapshot: Snapshot,
        version: int,
        request: SaveRequest,
        upload: Upload,
        *,
        check: RetentionCheck | None,
    ) -> Checkpoint:
        # Payload and row under one lock: its holder never sees the payload of a living writer without its row.
        with self._locked():
            try:
                self._session.commit(upload)
                new = self._new(snapshot, version, request, upload)
                return self._manifest.add_checkpoint(
                    new,
                    published_path=self._published_path(request),
                    monitor=request.monitor,
                    more_events=request.notes,
                    retention=check,
                )
            except BaseException:
                # Still under the lock: after it, another process may adopt the payload.
                if upload.is_committed:
                    self._undo(version, upload)
                raise

    def _undo(self, version: int, upload: Upload) -> None:
        """Remove the payload of a save that failed, unless its row may have become durable anyway.

        If that cannot be determined, or the payload not removed, the next opening adopts it.
        """
        with suppress(CheckpointStoreError):
            if self._manifest.checkpoints.get(version) is None:
                self._session.undo(upload)

    def _new(self, snapshot: Snapshot, version: int, request: SaveRequest, upload: Upload) -> NewCheckpoint:
        waited, written = request.waited_s(), upload.written
        return NewCheckpoint(
            version=version,
            run=request.run,
            epoch=request.epoch,
            batch=request.batch,
            step=request.step,
            metrics=request.metrics,
            file=file_of_payload(upload.name),
            nbytes=written.nbytes,
            digest=written.digest,
            created_at=request.created_at,
            format=snapshot.format,
            resumable=snapshot.state is not None,
            tags=request.tags,
            extra=request.extra,
            blocked_s=waited if request.blocked_s is None else request.blocked_s,
            total_s=waited if request.total_s is None else request.total_s,
            earlier_epochs=request.earlier_epochs,
        )

    def _published_path(self, request: SaveRequest) -> str | None:
        return None if request.publish is None else relative_to_store(self._layout.root, request.publish)

    def _publish(self, checkpoint: Checkpoint, target: Path, mark: DeferredMark | None) -> None:
        path = relative_to_store(self._layout.root, target)
        # Recovery finishes pending paths under this lock; two at once would interfere.
        with self._locked():
            shown = self._manifest.published.at(path)
            if shown is not None and shown.version == checkpoint.version and shown.pending:
                self._payloads.publish(checkpoint.payload, target)
                check = None if mark is None else mark.check
                confirm = partial(self._manifest.published.confirm, path, run=checkpoint.run, retention=check)
                release_and_retry(self._layout.reserve, confirm)

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Remove a run's checkpoints that neither `policy` nor the store's own rules keep; returns their versions.

        The rows are marked and committed first, then the files are deleted; the rows are dropped with the next save, or
        when this writer closes: a crash in between leaves marked rows, and the next opening for writing finishes.
        """
        with self._exclusive():
            return self._remove_expired(run, policy)

    def _remove_expired(self, run: str, policy: Policy) -> list[int]:
        expired = self._expired(run, policy)
        self._marked += expired
        self._unlink()
        self._payloads.wait_until_freed()
        return [checkpoint.version for checkpoint in expired]

    def _expired(self, run: str, policy: Policy, mark: DeferredMark | None = None) -> Sequence[Checkpoint]:
        """Mark what a policy lets expire, unless the save's transaction has done so, and return it."""
        if mark is not None and mark.tried:
            return mark.result()
        return release_and_retry(self._layout.reserve, partial(self._mark, run, policy))

    def _unlink(self) -> None:
        """Delete the payloads that are marked, including those that could not be deleted before."""
        if self._marked:
            remove_marked(self._payloads, self._marked, in_background=True)
            self._dropped += [checkpoint.version for checkpoint in self._marked]
            self._marked = []

    def _mark(self, run: str, policy: Policy) -> Sequence[Checkpoint]:
        # Chosen and marked under one lock: nobody pins or publishes meanwhile what is about to be removed.
        with self._locked():
            return self._retention.mark(run, policy)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other threads out; a forked child starts with its own mutex, which no lost thread holds.

        A signal handler runs inside whatever its thread is doing: one that saves would wait for itself.
        """
        if self._pid != os.getpid():
            self._mutex, self._pid = threading.Lock(), os.getpid()
            self._session = self._payloads.session()
            self._dropped, self._marked = [], []
            self._saved = self._owner_thread = None
        if self._owner_thread == threading.get_ident():
            raise SaveInProgressError(store=self._layout.root)
        with self._mutex:
            self._owner_thread = threading.get_ident()
            try:
                yield
            finally:
                self._owner_thread = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with store_lock(self._layout.locks):
            yield
