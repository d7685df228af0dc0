"""Links of a group that are stored in a heap, as libhdf5 does for nine links or more if a name is not ASCII.

Such a group has an index, which is a B-tree of hashes and heap ids (III.A.2), and a fractal heap of link messages
(III.G). Chapters are those of the "HDF5 File Format Specification", version 3.0. Checksums are not checked: the
payload's digest finds damage, or it leads to a name or an address that does not exist.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from ckptstore.formats.hdf5.metadata import Metadata

_BY_NAME = 5
_RECORD_SIZE = 11  # a hash of 4 bytes and a heap id of 7
_NODE_OVERHEAD = 10
_DEPTH_MOST = 16


class DenseLinks:
    """The links of one such group.

    Args:
        metadata: The file's metadata.
        fail: Raises an error with a reason.
        heap: Address of the fractal heap.
        index: Address of the B-tree.
    """

    def __init__(self, metadata: Metadata, fail: Callable[[str], NoReturn], heap: int, index: int) -> None:
        self._metadata = metadata
        self._fail = fail
        self._index = index
        self._heap = _FractalHeap(metadata, fail, heap)

    def messages(self) -> Iterator[bytes]:
        """Yield the bodies of the link messages, in the order of the index."""
        head = self._metadata.take(self._index, 38)
        kind, node_size, record_size, depth = struct.unpack_from("<BIHH", head, 5)
        root, count = struct.unpack_from("<QH", head, 16)
        if head[:4] != b"BTHD" or (kind, record_size) != (_BY_NAME, _RECORD_SIZE) or depth > _DEPTH_MOST:
            self._fail("an index of links is damaged")
        widths = _count_widths(node_size, depth)
        stack = [(root, count, depth)] if count else []
        while stack:
            address, count, level = stack.pop()
            node = self._metadata.take(address, node_size)
            if node[:4] != (b"BTIN" if level else b"BTLF"):
                self._fail("an index of links is damaged")
            records = node[6 : 6 + count * _RECORD_SIZE]
            for position in range(4, len(records), _RECORD_SIZE):
                yield self._heap.object(records[position : position + 7])
            if level:
                stack += _children(node[6 + count * _RECORD_SIZE :], count + 1, level, widths)


def _count_widths(node_size: int, depth: int) -> list[tuple[int, int]]:
    """Return the sizes in bytes of the two record counts of a child, for each level (III.A.2)."""
    most = (node_size - _NODE_OVERHEAD) // _RECORD_SIZE
    widths = [(_bytes_for(most), 0)]
    total = most
    for _ in range(depth):
        pointer = 8 + widths[-1][0] + widths[-1][1]
        inner = (node_size - _NODE_OVERHEAD - pointer) // (_RECORD_SIZE + pointer)
        total = (inner + 1) * total + inner
        widths.append((_bytes_for(most), _bytes_for(total)))
    return widths


def _children(
    pointers: bytes, count: int, level: int, widths: list[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    here, below = widths[level - 1]
    size = 8 + here + below
    for position in range(0, count * size, size):
        (address,) = struct.unpack_from("<Q", pointers, position)
        yield address, int.from_bytes(pointers[position + 8 : position + 8 + here], "little"), level - 1


def _bytes_for(most: int) -> int:
    return max(most.bit_length() + 7, 8) // 8


@dataclass(frozen=True, slots=True)
class _Table:
    """Doubling table of a heap: the size of its blocks doubles from row to row."""

    width: int
    first: int
    direct_most: int

    def row_size(self, row: int) -> int:
        return self.first << max(row - 1, 0)

    def direct_rows(self) -> int:
        return self.direct_most.bit_length() - self.first.bit_length() + 2

    def rows_of(self, nbytes: int) -> int:
        """Return the number of rows of an indirect block that covers `nbytes` of space."""
        return nbytes.bit_length() - (self.first * self.width).bit_length() + 1


class _FractalHeap:
    def __init__(self, metadata: Metadata, fail: Callable[[str], NoReturn], address: int) -> None:
        self._metadata = metadata
        self._fail = fail
        head = metadata.take(address, 146)
        if head[:4] != b"FRHP" or struct.unpack_from("<HH", head, 5) != (7, 0):
            fail("a heap of links is damaged")
        (most,) = struct.unpack_from("<I", head, 10)
        width, first, direct_most, bits = struct.unpack_from("<HQQH", head, 110)
        self._root, self._rows = struct.unpack_from("<QH", head, 132)
        powers = all(size and size & (size - 1) == 0 for size in (width, first, direct_most))
        if not powers or first > direct_most or not 8 <= bits <= 64 or self._rows > 64:
            fail("a heap of links is damaged")
        self._table = _Table(width, first, direct_most)
        self._offset_size = -(-bits // 8)
        self._length_size = min(-(-(direct_most.bit_length() - 1) // 8), _bytes_for(most))

    def object(self, identifier: bytes) -> bytes:
        """Return the object with an id of 7 bytes."""
        if identifier[0] & 0xF0:
            self._fail("a link is stored in a way that Keras does not write")
        end = 1 + self._offset_size
        offset = int.from_bytes(identifier[1:end], "little")
        length = int.from_bytes(identifier[end : end + self._length_size], "little")
        return self._metadata.take(self._locate(offset), length)

    def _locate(self, offset: int) -> int:
        """Return the file address of an offset in the heap, searching down from the root block."""
        address: int = self._root
        rows, table = self._rows, self._table
        if rows == 0:
            return address + offset
        while True:
            row = (offset // (table.first * table.width)).bit_length()
            if row >= rows:
                self._fail("a link lies outside its heap")
            begin = table.first * table.width << (row - 1) if row else 0
            column, offset = divmod(offset - begin, table.row_size(row))
            if self._metadata.read(address, 4) != b"FHIB":
                self._fail("a heap of links is damaged")
            entry = address + 13 + self._offset_size + 8 * (row * table.width + column)
            (address,) = struct.unpack("<Q", self._metadata.read(entry, 8))
            if row < table.direct_rows():
                return address + offset
            rows = table.rows_of(table.row_size(row))
