"""Opens a store's manifest: for reading, without a trace; for writing, after making disk and manifest agree."""

from __future__ import annotations

import os
from functools import partial

from ckptstore.errors import CorruptManifestError, UnsafeFileSystemError
from ckptstore.manifest.manifest import Manifest
from ckptstore.storage import reserve
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import probe_locks, store_lock


def open_for_reading(layout: Layout) -> Manifest:
    """Open a manifest and change nothing.

    Raises:
        CheckpointStoreError: As `ckptstore.CheckpointStore` says.
    """
    if not os.path.lexists(layout.manifest):
        raise CorruptManifestError(path=layout.manifest, reason="it is missing, though there are payloads")
    return Manifest.open(layout.manifest, read_only=True)


def _check_one_disk(layout: Layout) -> None:
    """Refuse a store that is spread over file systems: its renames would not be atomic, or not be possible."""
    disks = {path: path.stat().st_dev for path in (layout.checkpoints, layout.tmp, layout.quarantine)}
    if len(set(disks.values())) > 1:
        raise UnsafeFileSystemError(
            path=layout.root,
            lacks="checkpoints, tmp and quarantine lie on different file systems, so that files cannot be renamed "
            "from one to the other",
            hint="move them onto one disk",
        )


def open_for_writing(layout: Layout) -> Manifest:
    """Open a manifest, making or upgrading it, and finish or undo what a dead writer left.

    What the file system cannot give is found out here: see `ckptstore.storage.locks.probe_locks`.

    Raises:
        CheckpointStoreError: As `ckptstore.CheckpointStore` says.
    """
    if os.path.lexists(layout.manifest):
        Manifest.check(layout.manifest)
    from ckptstore.commit.recovery import reconcile  # reads payloads; a query can do without

    layout.make()
    _check_one_disk(layout)
    with store_lock(layout.locks):
        probe_locks(layout.locks)
        manifest = Manifest.open(layout.manifest)
        try:
            reserve.release_and_retry(layout.reserve, partial(reconcile, layout, manifest))
            reserve.ensure(layout.reserve)
        except BaseException:
            manifest.close()
            raise
    return manifest
