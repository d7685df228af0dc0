"""Reads texts of variable length from the global heap collections of an HDF5 file; chapter III.E of the specification.

Each text belongs to the one array that refers to it, as in every file that a program has written: what the references
of a file can ask for is no more than its heaps hold.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import NamedTuple

from ckptstore.formats.hdf5.metadata import METADATA_MOST
from ckptstore.storage.random_access import RandomAccess

# Bytes of a collection: libhdf5 makes and accepts no smaller one.
_LEAST = 4096
REFERENCE_SIZE = 16  # a length (4 bytes), the address of a collection (8) and an index in it (4)


class _Text(NamedTuple):
    offset: int
    nbytes: int


class TextReader:
    """The texts of one file; each collection is listed once.

    Args:
        source: The file.
    """

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._collections: dict[int, dict[int, _Text]] = {}
        self._spans: list[tuple[int, int]] = []
        self._owners: dict[tuple[int, int], str] = {}

    def texts(self, references: bytes, owner: str) -> list[bytes]:
        """Return the texts that an array's bytes refer to.

        Args:
            references: References of 16 bytes each.
            owner: The array's path; it may ask again.

        Raises:
            CorruptPayloadError: A text is not there, is another array's, or is referred to twice.
        """
        seen: set[tuple[int, int]] = set()
        found = []
        for length, address, index in struct.iter_unpack("<IQI", references):
            if length == 0:
                found.append(b"")
                continue
            key = (address, index)
            if key in seen or self._owners.setdefault(key, owner) != owner:
                raise self._source.corrupt("a text is referred to twice")
            seen.add(key)
            found.append(self._read(key, length))
        return found

    def _read(self, key: tuple[int, int], length: int) -> bytes:
        address, index = key
        if address not in self._collections:
            self._collections[address] = self._list(address)
        text = self._collections[address].get(index)
        if text is None or text.nbytes < length:
            raise self._source.corrupt("a text is not where it should be")
        return self._source.read(text.offset, length)

    def _list(self, address: int) -> dict[int, _Text]:
        """Return the places of a collection's texts, by index."""
        head = self._source.read(address, 16)
        (size,) = struct.unpack_from("<Q", head, 8)
        if head[:4] != b"GCOL" or head[4] != 1 or not _LEAST <= size <= METADATA_MOST:
            raise self._source.corrupt("a heap of texts is damaged")
        at = bisect_left(self._spans, (address, address + size))
        is_free = at == 0 or self._spans[at - 1][1] <= address
        if not is_free or (at < len(self._spans) and self._spans[at][0] < address + size):
            raise self._source.corrupt("two heaps of texts share bytes")
        self._spans.insert(at, (address, address + size))
        collection = self._source.read(address, size)
        texts: dict[int, _Text] = {}
        position = 16
        while position + 16 <= size:
            index, _, length = struct.unpack_from("<HHxxxxQ", collection, position)
            if index == 0:
                break
            if position + 16 + length > size or index in texts:
                raise self._source.corrupt("a heap of texts is damaged")
            texts[index] = _Text(address + position + 16, length)
            position += 16 + -(-length // 8) * 8
        return texts
