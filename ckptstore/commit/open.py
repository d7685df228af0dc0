"""Opens a store's manifest: for reading without changing anything, for writing after recovery."""

from __future__ import annotations

import os
from functools import partial

from ckptstore.errors import CorruptManifestError
from ckptstore.manifest.manifest import Manifest
from ckptstore.storage import reserve
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import probe_locks, store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.system import standard_descriptors


def open_for_reading(layout: Layout) -> Manifest:
    """Open a manifest and change nothing.

    Raises:
        CheckpointStoreError: As `ckptstore.CheckpointStore` documents.
    """
    if not os.path.lexists(layout.manifest):
        raise CorruptManifestError(path=layout.manifest, reason="it is missing, though there are payloads")
    return Manifest.open(layout.manifest, read_only=True)


def open_for_writing(layout: Layout, *, create: bool = True) -> Manifest:
    """Open a manifest, make or upgrade it, and finish or undo what a dead writer left.

    A file system that lacks what a store needs is refused here: see `ckptstore.storage.locks.probe_locks`.

    Args:
        layout: The store's paths.
        create: False for a store that is in use already: if it is gone, none is begun in its place.

    Raises:
        StoreRemovedError: There is no store, and none is to be made.
        CheckpointStoreError: As `ckptstore.CheckpointStore` documents.
    """
    if not create:
        layout.require_manifest()
    standard_descriptors.occupy()
    if os.path.lexists(layout.manifest):
        Manifest.check(layout.manifest)
    from ckptstore.commit.recovery import reconcile  # reads payloads; queries do not need it

    layout.make()
    payloads_at(layout).check()
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
