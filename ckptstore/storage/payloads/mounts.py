"""Payload stores other than local ones, by the directory of the store whose payloads they hold, in this process.

Everything that reaches a payload, by a checkpoint or by the path of its store, asks here; what is not mounted is local.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.storage.payloads.interface import PayloadStore

_mounted: dict[str, PayloadStore] = {}


@contextmanager
def mounted(root: Path, payloads: PayloadStore) -> Iterator[None]:
    """Let a store's payloads lie in `payloads` for the block; its manifest and locks stay in the directory `root`."""
    key = os.path.abspath(root)
    _mounted[key] = payloads
    try:
        yield
    finally:
        del _mounted[key]


def mounted_at(root: Path) -> PayloadStore | None:
    """Return what is mounted for a store's directory, or None where its payloads are local."""
    return _mounted.get(os.fspath(root)) if _mounted else None
