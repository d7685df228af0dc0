"""Checks that a payload is there, by its size or byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.records import Checkpoint
from ckptstore.storage.files import digest_file


def has_size(path: Path | str, nbytes: int) -> bool:
    """Return True if a file is there and has this size."""
    try:
        # Not `Path.stat`: there may be very many files, and each would need a `Path`.
        return os.stat(path).st_size == nbytes  # noqa: PTH116
    except OSError:
        return False


def size_matches(checkpoint: Checkpoint) -> bool:
    """Return True if the payload is there with the size that its row records."""
    return has_size(checkpoint.path, checkpoint.nbytes)


def digest_matches(checkpoint: Checkpoint) -> bool:
    """Return True if the payload is there, byte for byte as its row records; reads all of it.

    Raises:
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    return size_matches(checkpoint) and digest_file(checkpoint.path) == checkpoint.digest
