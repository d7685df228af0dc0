"""Writing arrays to a sink: without copies, digested on the way, small ones joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from ckptstore.formats.hdf5.dtypes import StoredType
from ckptstore.system.arrays import Array

# A part that was just digested is still in the processor's cache when the sink takes it.
_PART = 4 << 20
# Below this size a copy costs less than a call of the sink.
_SMALL = 256 << 10
_JOINED = 1 << 20
_BYTE = np.dtype(np.uint8)


class Sink(Protocol):
    """Anything that bytes can be written to in order: a `ckptstore.storage.durable_writer.DurableWriter`, a file."""

    def write(self, data: Any, /) -> Any:
        """Write the bytes of a buffer; the buffer must not change until the sink is finished."""


def stored_bytes(array: Array, kind: StoredType) -> npt.NDArray[np.uint8]:
    """Return an array's bytes as stored, in C order and little-endian; a view where no conversion is needed."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if kind.convert is not None:
        flat = kind.convert(flat)
    elif flat.dtype != kind.stored:
        flat = flat.astype(kind.stored)
    return flat.view(_BYTE)


class BufferedWriter:
    """Writer that joins small pieces before it hands them to a sink; nothing is complete before `flush`.

    Args:
        write: The sink's `write`. Its errors are raised unchanged.
    """

    def __init__(self, write: Any) -> None:
        self._write = write
        self._pieces: list[Any] = []
        self._waiting = 0

    def add(self, data: bytes | npt.NDArray[np.uint8]) -> None:
        """Write a piece, now or together with the next ones."""
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting >= _JOINED:
            self.flush()

    def add_array(self, array: Array, kind: StoredType) -> str:
        """Write an array's bytes; return their xxh3_128 as 32 hex digits."""
        data = stored_bytes(array, kind)
        if len(data) < _SMALL:
            self.add(data)
            return xxhash.xxh3_128_hexdigest(data.data)
        self.flush()
        digest = xxhash.xxh3_128()
        for part in _parts(data.data):
            digest.update(part)
            self._write(part)
        return digest.hexdigest()

    def flush(self) -> None:
        """Write all pieces that are still held back."""
        if self._pieces:
            joined = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces, self._waiting = [], 0
            self._write(joined if isinstance(joined, bytes) else joined.data)


def _parts(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _PART):
        yield data[start : start + _PART]
