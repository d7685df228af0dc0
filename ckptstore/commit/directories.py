"""Makes directories of a store again that were removed while it was in use, and warns of what was lost with them."""

from __future__ import annotations

from ckptstore.manifest.manifest import Manifest
from ckptstore.storage.layout import Layout
from ckptstore.system import messages


def restore_directories(layout: Layout, manifest: Manifest) -> None:
    """Make the directories of a store that are missing, with a warning; the caller holds the store's lock.

    Where payloads are gone, their checkpoints are marked as missing, as the next opening would. A crash leaves some of
    the directories made.

    Raises:
        StoreRemovedError: The store itself is gone.
        StorageError: A directory cannot be made.
    """
    layout.require_manifest()
    made = layout.make_directories()
    if not made:
        return
    from ckptstore.commit.recovery import mark_missing  # reads payloads; a save does not need it

    count = mark_missing(layout, manifest)
    lost = f" (payloads lost: {count})" if count else ""
    names = ", ".join(path.name for path in made)
    messages.warn(f"{layout.root}: removed while the store was in use, and made again: {names}{lost}")
