"""Whether a payload is there, by its size or byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.records import Checkpoint
from ckptstore.storage.files import digest_file


def has_size(path: Path | str, nbytes: int) -> bool:
    """Return True when a file is there and has this size."""
    try:
        # Not `Path.stat`: there may be very many, for each of which a path would have to be made.
        return os.stat(path).st_size == nbytes  # noqa: PTH116
    except OSError:
        return False


def size_matches(checkpoint: Checkpoint) -> bool:
    """Return True when the payload is there with the size that its row says."""
    return has_size(checkpoint.path, checkpoint.nbytes)


def digest_matches(checkpoint: Checkpoint) -> bool:
    """Return True when the payload is there, byte for byte as its row says; reads all of it.

    Raises:
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    return size_matches(checkpoint) and digest_file(checkpoint.path) == checkpoint.digest
