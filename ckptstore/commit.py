"""The commit protocol: payload, rename, manifest row, published path, retention; in this order and never another.

A checkpoint exists from the instant that its manifest transaction is committed. What a crash leaves before that is
swept or adopted when the store is next opened for writing, and what it leaves after that is finished there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CheckpointStoreError
from ckptstore.files import fsync_directory, rename_to_new, unlink
from ckptstore.layout import Layout, relative_to, shown_at
from ckptstore.locks import Lease, store_lock
from ckptstore.manifest import Manifest
from ckptstore.payload_writer import PayloadWriter, Written
from ckptstore.publishing import publish
from ckptstore.records import SUFFIXES, Checkpoint, Mode, NewCheckpoint, json_number, json_time
from ckptstore.retention import Policy, always_kept

if TYPE_CHECKING:
    from ckptstore.formats.snapshot import Snapshot

# Version of the description inside payloads.
DESCRIPTION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """What is to be saved, checked before: position, metrics and names; `began` is `time.perf_counter()`."""

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
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)


class Committer:
    """Writes checkpoints into one store, one at a time.

    Args:
        layout: Where the store lies.
        manifest: Its manifest, open for writing.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._lease: Lease | None = None
        self._pid = os.getpid()
        self._busy = threading.RLock()

    def commit(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Save a snapshot; when this returns, the checkpoint is durable, indexed and shown.

        A crash before the manifest's COMMIT leaves no checkpoint, or the whole one; a crash after it leaves the
        whole one.

        Raises:
            DiskFullError: There is no room; nothing changed.
            StorageError: The disk failed; older checkpoints are as they were.
            StoreLockedError: The store's lock was not free in time.
        """
        with self._alone():
            version = self._begin()
            written, path = self._write(snapshot, version, request)
            checkpoint = self._insert(snapshot, version, request, written, path)
            if request.publish is not None:
                self._show(checkpoint, request.publish)
            if request.keep is not None:
                self.retain(request.run, request.keep)
            return checkpoint

    def close(self) -> None:
        """End this writer's lease."""
        lease, self._lease = self._lease, None
        if lease is not None and self._pid == os.getpid():
            with self._locked():
                lease.release()

    def _begin(self) -> int:
        """Take a version, and a lease when this process has none."""
        with self._locked():
            if self._lease is None:
                self._lease = Lease(self._layout.tmp)
            return self._manifest.reserve_version()

    def _write(self, snapshot: Snapshot, version: int, request: SaveRequest) -> tuple[Written, Path]:
        from ckptstore.formats import payload  # numpy and h5py, which a query can do without

        assert self._lease is not None
        encoded = payload.encode(snapshot, self._description(snapshot, version, request))
        path = self._lease.new_path(SUFFIXES[snapshot.format])
        writer = PayloadWriter(path, reserve=encoded.nbytes)
        try:
            encoded.write(writer)
            return writer.finish(), path
        except BaseException:
            writer.abort()
            raise

    def _description(self, snapshot: Snapshot, version: int, request: SaveRequest) -> dict[str, Any]:
        return {
            "ckptstore": DESCRIPTION,
            "store": self._manifest.uuid,
            "version": version,
            "run": request.run,
            "epoch": request.epoch,
            "batch": request.batch,
            "step": request.step,
            "metrics": {name: json_number(value) for name, value in request.metrics.items()},
            "created_at": json_time(request.created_at),
            "tags": list(request.tags),
            "format": snapshot.format,
            "resumable": snapshot.state is not None,
            "extra": request.extra,
            "published": self._published_path(request),
        }

    def _insert(
        self, snapshot: Snapshot, version: int, request: SaveRequest, written: Written, temporary: Path
    ) -> Checkpoint:
        file = self._layout.payload_file(version, request.run, snapshot.format)
        path = self._layout.root / file
        # Rename and row under one lock: nobody who holds it ever sees the payload of a living writer without its row.
        with self._locked():
            try:
                rename_to_new(temporary, path)
                fsync_directory(path.parent)
                fsync_directory(temporary.parent)
            except BaseException:
                # Ours is the temporary file until the rename, and only after it the final name.
                self._discard(temporary if os.path.lexists(temporary) else path)
                raise
            waited = time.perf_counter() - request.began
            new = NewCheckpoint(
                version=version,
                run=request.run,
                epoch=request.epoch,
                batch=request.batch,
                step=request.step,
                metrics=request.metrics,
                file=file,
                nbytes=written.nbytes,
                digest=written.digest,
                created_at=request.created_at,
                format=snapshot.format,
                resumable=snapshot.state is not None,
                tags=request.tags,
                extra=request.extra,
                blocked_s=waited,
                total_s=waited,
            )
            return self._add_row(new, request, path)

    def _add_row(self, new: NewCheckpoint, request: SaveRequest, path: Path) -> Checkpoint:
        try:
            return self._manifest.add_checkpoint(
                new, published_path=self._published_path(request), monitor=request.monitor
            )
        except BaseException:
            # A COMMIT that failed may have become durable all the same: only a row that is surely not there
            # makes the payload ours to remove. Where even that cannot be told, the next opening decides.
            if self._surely_absent(new.version):
                self._discard(path)
            raise

    def _published_path(self, request: SaveRequest) -> str | None:
        return None if request.publish is None else relative_to(self._layout.root, request.publish)

    def _surely_absent(self, version: int) -> bool:
        try:
            return self._manifest.get(version) is None
        except CheckpointStoreError:
            return False

    def _discard(self, path: Path) -> None:
        """Remove what a failed save wrote; what cannot be removed is dealt with when the store is next opened."""
        with suppress(OSError):
            unlink(path)

    def _show(self, checkpoint: Checkpoint, target: Path) -> None:
        path = relative_to(self._layout.root, target)
        # Recovery finishes pending paths under this lock; two at once would be in each other's way.
        with self._locked():
            shown = self._manifest.published_at(path)
            if shown is not None and shown.version == checkpoint.version and shown.pending:
                publish(checkpoint.path, target)
                self._manifest.confirm_published(path)

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Remove a run's checkpoints that neither `policy` nor the store's own rules keep; returns their versions.

        The rows are marked and committed first, then the files go, then the rows: a crash in between leaves marked
        rows, and the next opening for writing finishes.
        """
        with self._alone():
            # Chosen and marked under one lock: nobody pins or shows meanwhile what is about to go.
            with self._locked():
                gone = self._not_kept(run, policy)
                if gone:
                    self._manifest.set_state([checkpoint.version for checkpoint in gone], "deleting")
            if gone:
                finish_deletions(self._manifest, gone, self._locked)
            return [checkpoint.version for checkpoint in gone]

    def _not_kept(self, run: str, policy: Policy) -> list[Checkpoint]:
        checkpoints = self._manifest.checkpoints(run)
        shown = self._shown()
        kept = policy(checkpoints) | always_kept(
            checkpoints, monitors=self._manifest.monitors(run), shown=shown, is_whole=has_its_size
        )
        return [checkpoint for checkpoint in checkpoints if checkpoint.version not in kept]

    def _shown(self) -> set[int]:
        """Versions that a path shows, or is about to; one whose path the user removed is shown no more."""
        return {
            published.version
            for published in self._manifest.published()
            if published.pending or os.path.lexists(shown_at(self._layout.root, published.path))
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads out; a forked child starts with a lock of its own, which no lost thread holds."""
        if self._pid != os.getpid():
            self._busy, self._lease, self._pid = threading.RLock(), None, os.getpid()
        with self._busy:
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with store_lock(self._layout.locks):
            yield


def finish_deletions(manifest: Manifest, checkpoints: list[Checkpoint], locked: Any) -> None:
    """Unlink the payloads of rows marked ``deleting``, durably, then drop the rows. May be repeated."""
    for checkpoint in checkpoints:
        unlink(checkpoint.path)
    for directory in {checkpoint.path.parent for checkpoint in checkpoints}:
        fsync_directory(directory)
    with locked():
        manifest.remove([checkpoint.version for checkpoint in checkpoints])


def has_its_size(checkpoint: Checkpoint) -> bool:
    """Return True when the payload is there with the size that its row says."""
    try:
        return checkpoint.path.stat().st_size == checkpoint.nbytes
    except OSError:
        return False
