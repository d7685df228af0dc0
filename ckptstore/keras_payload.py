"""What is looked at before Keras is given a payload: that it is the file that was saved, and what it claims to hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.formats import payload
from ckptstore.formats.payload import OpenPayload
from ckptstore.records import Checkpoint


@contextmanager
def opened(checkpoint: Checkpoint) -> Iterator[OpenPayload]:
    """Open a checkpoint's payload, once it is known to be the file that was saved.

    All its bytes are read for that, once; what is read of them later comes from the system's memory, as far as that
    has room for them.

    Raises:
        CorruptPayloadError: It is missing, or differs in size or digest.
    """
    with payload.open_verified(checkpoint.path, nbytes=checkpoint.nbytes, digest=checkpoint.digest) as found:
        yield found


def look_through(checkpoint: Checkpoint) -> None:
    """Verify a payload, and read its structure before Keras does.

    A digest says that it is what a manifest lists, not who made it.

    Raises:
        CorruptPayloadError: It is not what was saved, links out of itself, or claims more than it holds.
    """
    with opened(checkpoint) as found:
        found.layout()
        found.documents()
