"""What is looked at before Keras is given a payload: that it is the file that was saved, and what it claims to hold."""

from __future__ import annotations

from ckptstore.errors import CorruptPayloadError
from ckptstore.files import digest_file
from ckptstore.formats import payload
from ckptstore.records import Checkpoint


def verify(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's payload is the file that was saved.

    Raises:
        CorruptPayloadError: It is missing, or differs in size or digest.
    """
    path = checkpoint.path
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptPayloadError(path=path, reason="the file is missing") from error
    if nbytes != checkpoint.nbytes:
        raise CorruptPayloadError(
            path=path, reason=f"it has {nbytes:,} bytes, {checkpoint.nbytes:,} were saved"
        )
    digest = digest_file(path)
    if digest != checkpoint.digest:
        raise CorruptPayloadError(path=path, reason=f"its digest is {digest}, {checkpoint.digest} was saved")


def look_through(checkpoint: Checkpoint) -> None:
    """Read a payload's structure before Keras does: a digest says that it is what a manifest lists, not who made it.

    Raises:
        CorruptPayloadError: It links out of itself, or claims more than it holds.
    """
    payload.read_layout(checkpoint.path)
    if checkpoint.format == "keras":
        payload.read_documents(checkpoint.path)
