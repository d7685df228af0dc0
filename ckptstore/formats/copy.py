"""Copies a payload, or the weights inside an archive, in one pass, and checks on the way that it is what was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xxhash

from ckptstore.formats.sink import Sink
from ckptstore.formats.zip_reader import KerasArchive
from ckptstore.storage.files import DIGEST
from ckptstore.storage.random_access import open_random_access

_PART = 4 << 20


def locate_weights(path: Path) -> tuple[int, int]:
    """Return where the HDF5 file lies in a ``.keras`` archive, and its size in bytes.

    Raises:
        CorruptPayloadError: It is missing, or no archive.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_random_access(path) as file:
        return KerasArchive(file).weights()


def copy_verified(
    path: Path,
    sink: Sink,
    *,
    nbytes: int,
    digest: str,
    part: tuple[int, int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Hand a payload's bytes to a sink; nothing that it took may be used unless this returns.

    Args:
        path: The payload.
        sink: Where to.
        nbytes: The size that the payload must have.
        digest: The digest that it must have.
        part: Where the bytes that are wanted begin, and how many they are; None for all.
        progress: Called with numbers of bytes as they are read.

    Raises:
        CorruptPayloadError: It is missing, or is not what was saved.
        StorageError: It cannot be read, which does not say that it is damaged.
        Exception: What the sink raises, unchanged.
    """
    begin, count = part or (0, nbytes)
    found = xxhash.xxh3_128()
    with open_random_access(path) as file:
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
