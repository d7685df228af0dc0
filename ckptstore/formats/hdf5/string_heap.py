"""Heap for texts of variable length in an HDF5 file: global heap collections, apart from the references to them.

The layout is that of the "HDF5 File Format Specification", version 3.0, III.E.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import NamedTuple

from ckptstore.errors import InvalidArgumentError

_LEAST = 4096  # libhdf5 accepts no smaller collection
_OBJECTS_MOST = 4000


def padded(nbytes: int) -> int:
    """Return the next multiple of 8, to which HDF5 pads its parts."""
    return -(-nbytes // 8) * 8


class Text(NamedTuple):
    """Place of a text in the heap: length in bytes, collection, and slot in it; ``slot=0`` is an empty text."""

    nbytes: int
    collection: int
    slot: int


class TextHeap:
    """Collections of texts; `address` is that of the first collection, once the caller has set it.

    Equal texts are stored separately: libhdf5 frees a text when the attribute that owns it changes.
    """

    def __init__(self) -> None:
        self.address = 0
        self._collections: list[list[bytes]] = []
        self._starts: list[int] = []

    def add(self, text: str) -> Text:
        """Add a text; raises InvalidArgumentError if it has no UTF-8 form or contains NUL."""
        encoded = text.encode(errors="surrogatepass")
        if b"\0" in encoded or encoded.decode(errors="replace") != text:
            raise InvalidArgumentError(argument="attribute", value=text, reason="cannot be a text in HDF5")
        if not encoded:
            return Text(0, 0, 0)
        if not self._collections or len(self._collections[-1]) >= _OBJECTS_MOST:
            self._collections.append([])
        self._collections[-1].append(encoded)
        return Text(len(encoded), len(self._collections) - 1, len(self._collections[-1]))

    def size(self) -> int:
        """Return the size of all collections in bytes; nothing may be added afterwards."""
        sizes = [self._collection_size(collection) for collection in self._collections]
        self._starts = list(accumulate(sizes, initial=0))
        return self._starts[-1]

    @staticmethod
    def _collection_size(texts: list[bytes]) -> int:
        # With the head, and the object that represents the free space.
        return max(_LEAST, 16 + sum(16 + padded(len(text)) for text in texts) + 16)

    def reference(self, text: Text) -> bytes:
        """Return the reference of 16 bytes to a text; call `size` first."""
        address = self.address + self._starts[text.collection] if text.slot else 0
        return struct.pack("<IQI", text.nbytes, address, text.slot)

    def encode(self) -> bytes:
        """Return the bytes of all collections."""
        pieces = []
        for texts in self._collections:
            size = self._collection_size(texts)
            used = [
                struct.pack("<HHIQ", index, 1, 0, len(text)) + text.ljust(padded(len(text)), b"\0")
                for index, text in enumerate(texts, start=1)
            ]
            collection = b"".join([b"GCOL", struct.pack("<B3xQ", 1, size), *used])
            free = size - len(collection)
            pieces.append(collection + struct.pack("<HHIQ", 0, 0, 0, free).ljust(free, b"\0"))
        return b"".join(pieces)
