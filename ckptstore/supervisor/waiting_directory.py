"""The hidden directory of a supervisor whose store is not there yet; it lies beside the place where that will be.

A script may look whether that place exists, so that a supervisor makes nothing there.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ckptstore.errors import StoreNotFoundError
from ckptstore.storage.layout import DROP_IN_DIRECTORY, WAITING_PREFIX, Layout, absolute, find_store


def waiting_directory(path: Path) -> Path:
    """Return the hidden directory for a store that is not there yet: in it, or above it where a directory exists."""
    store = absolute(path)
    place = next((above for above in (store, *store.parents) if above.is_dir()), store.parent)
    return place / _hidden_name(store)


def _hidden_name(store: Path) -> str:
    # The folder of a drop-in callback and the store in it are one.
    folder = store.parent if store.name == DROP_IN_DIRECTORY else store
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=6).hexdigest()
    return f"{WAITING_PREFIX}{digest}"


def waiting_directories(path: Path) -> list[Path]:
    """Return the hidden directories of this kind that there are."""
    store = absolute(path)
    return [found for above in (store, *store.parents) if (found := above / _hidden_name(store)).is_dir()]


def layout_of(path: Path) -> Layout | None:
    """Return the store at a path, or None if there is none yet.

    Raises:
        NotAStoreError: The path is a file, or its manifest is another program's.
    """
    try:
        return Layout(find_store(path))
    except StoreNotFoundError:
        return None
