"""Removes a store that is no longer needed, and nothing that does not belong to it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection
from functools import partial
from itertools import chain
from pathlib import Path

from ckptstore.commit.retention.deletion import finish_marked
from ckptstore.errors import StorageError
from ckptstore.manifest.manifest import Manifest
from ckptstore.storage.files import fsync_directory, remove_directory, unlink
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.reserve import release_and_retry

_BACKUPS = "manifest-*.backup.sqlite"


def remove_checkpoints(layout: Layout, manifest: Manifest, runs: Collection[str]) -> None:
    """Remove all checkpoints of some runs; the caller holds their locks.

    A crash leaves them all, or rows marked for deletion, which the next opening for writing finishes.
    """
    locked = partial(store_lock, layout.locks)
    with locked():
        versions = array("q", chain.from_iterable(map(manifest.checkpoints.versions, runs)))
        release_and_retry(layout.reserve, partial(manifest.checkpoints.set_state, versions, "deleting"))
    for run in runs:
        finish_marked(payloads_at(layout), manifest, locked, run)


def remove_empty_store(layout: Layout) -> bool:
    """Remove a store without checkpoints, and its directory; returns True if the directory is removed.

    The caller holds the locks of all its runs. Other files stay, such as logs, and so do payloads in quarantine. A
    crash leaves an empty store.
    """
    with store_lock(layout.locks):
        if layout.holds_payloads():
            return False
        manifest = layout.manifest
        for path in (*layout.root.glob(_BACKUPS), layout.reserve, manifest, _journal(manifest)):
            unlink(path)
        heartbeats = [layout.heartbeats] if layout.heartbeats.is_dir() else []
        for path in layout.logs.glob("*/*.diff.gz"):
            unlink(path)
        for path in _files_in(layout.locks, *heartbeats):
            unlink(path)
        if not payloads_at(layout).dismantle():
            return False
    directories = (
        layout.heartbeats,
        layout.locks,
        *(path for path in layout.logs.glob("*") if path.is_dir()),
        layout.logs,
        layout.root,
    )
    for directory in directories:
        if not remove_directory(directory):
            return False
    fsync_directory(layout.root.parent)
    return True


def _journal(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.name}-journal")


def _files_in(*directories: Path) -> list[Path]:
    try:
        return [directory / name for directory in directories for name in os.listdir(directory)]
    except OSError as error:
        raise StorageError(operation="list", path=directories[0], error=error) from error
