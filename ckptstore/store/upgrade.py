"""Upgrades a store's manifest to the schema of this version, and reports both revisions."""

from __future__ import annotations

from pathlib import Path

from ckptstore.manifest.schema import schema_of
from ckptstore.storage.layout import Layout
from ckptstore.store.store import CheckpointStore


def upgrade_at(root: Path) -> tuple[str | None, str]:
    """Upgrade the store at `root`; returns the revision before, None where there was none, and the one after.

    Opening for writing upgrades: it backs the manifest up first. A crash leaves the old schema or the new one.

    Raises:
        CheckpointStoreError: As opening `ckptstore.CheckpointStore` for writing.
    """
    before = schema_of(Layout(root).manifest)
    with CheckpointStore(root) as store:
        return before, store.schema_version
