"""Verified copies of a payload that is one file, or of a stretch of it: copied and checked in one pass."""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from ckptstore.formats.sink import Sink
from ckptstore.storage.files import DIGEST
from ckptstore.storage.payloads.stored import StoredPayload

_PART = 4 << 20


def copy_verified(
    stored: StoredPayload,
    sink: Sink,
    *,
    nbytes: int,
    digest: str,
    part: tuple[int, int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Copy a payload's bytes to a sink; the copy may be used only if this returns.

    Args:
        stored: The payload.
        sink: Receives the bytes.
        nbytes: The size that the payload must have.
        digest: The digest that it must have.
        part: Offset and number of the bytes to copy; None for all.
        progress: Called with the number of bytes of each part that was read.

    Raises:
        CorruptPayloadError: The payload is missing, or is not what was saved.
        StorageError: It cannot be read, which does not mean that it is damaged.
        Exception: The sink's own errors, unchanged.
    """
    begin, count = part or (0, nbytes)
    found = xxhash.xxh3_128()
    file = stored.file()
    if file.nbytes != nbytes:
        raise file.corrupt(f"it has {file.nbytes:,} bytes, {nbytes:,} were saved")
    for offset in range(0, nbytes, _PART):
        data = memoryview(file.read(offset, min(_PART, nbytes - offset)))
        found.update(data)
        wanted = data[max(0, begin - offset) : max(0, begin + count - offset)]
        if wanted:
            sink.write(wanted)
        if progress is not None:
            progress(len(data))
    text = f"{DIGEST}:{found.hexdigest()}"
    if text != digest:
        raise file.corrupt(f"its digest is {text}, {digest} was saved")
