"""Checks that a checkpoint's payload is there, by its size or byte for byte."""

from __future__ import annotations

from ckptstore.errors import CorruptPayloadError
from ckptstore.records import Checkpoint
from ckptstore.storage.payloads.at import payload_of, payloads_of


def size_matches(checkpoint: Checkpoint) -> bool:
    """Return True if the payload is there with the size that its row records."""
    return payloads_of(checkpoint).have_sizes([(checkpoint.payload, checkpoint.nbytes)])[0]


def digest_matches(checkpoint: Checkpoint) -> bool:
    """Return True if the payload is there, byte for byte as its row records; reads all of it.

    Raises:
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    if not size_matches(checkpoint):
        return False
    try:
        with payload_of(checkpoint).open() as stored:
            stored.verify(checkpoint.nbytes, checkpoint.digest)
    except CorruptPayloadError:
        return False
    return True
