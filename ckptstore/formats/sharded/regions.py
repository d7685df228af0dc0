"""Reading a region of an array that is stored in C order: straight into memory where that is in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ckptstore.formats.contents import read_array
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.storage.random_access import RandomAccess
from ckptstore.system.arrays import Array

# The most that is read at once into memory of its own.
_SLAB = 4 << 20
# A row is read in whole, with what is not wanted of it, up to this size, or to so many times what is wanted.
_ROW, _WASTE = 32 << 10, 8


def read_region(
    source: RandomAccess, dataset: StoredDataset, start: Sequence[int], stop: Sequence[int], out: Array
) -> None:
    """Read a region of an array; several threads may do so at once.

    Args:
        source: The file.
        dataset: The array.
        start: The region's first index along each dimension.
        stop: The index after its last, likewise.
        out: Receives the values; of the region's shape and the array's dtype. It may be a part of another array.

    Raises:
        CorruptPayloadError: The bytes are not in one piece, or are missing.
        StorageError: The disk cannot be read.
    """
    if dataset.offset is None:
        raise source.corrupt(dataset.refusal)
    if out.size == 0:
        return
    if dataset.texts is not None or dataset.kind.restore is not None:
        out[...] = read_array(source, dataset)[tuple(map(slice, start, stop))]
        return
    _read(source, _Box(dataset.offset, dataset.shape, tuple(start), tuple(stop)), out)


@dataclass(frozen=True, slots=True)
class _Box:
    """A region of an array that is stored at an offset."""

    offset: int
    shape: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]

    def row(self, index: int, nbytes: int) -> _Box:
        """Return the region in one row of the array; a row has `nbytes` bytes."""
        return _Box(self.offset + index * nbytes, self.shape[1:], self.start[1:], self.stop[1:])


def _read(source: RandomAccess, box: _Box, out: Array) -> None:
    row = prod(box.shape[1:]) * out.itemsize
    sizes = (last - first for first, last in zip(box.start[1:], box.stop[1:], strict=True))
    wanted = prod(sizes) * out.itemsize
    if wanted == row and out.flags.c_contiguous:
        begin = box.start[0] * row if box.shape else 0
        source.read_into(box.offset + begin, _bytes_of(out))
    elif not box.shape:
        out[...] = _slab(source, box.offset, (), out.dtype)
    elif row <= max(_ROW, _WASTE * wanted) and row <= _SLAB:
        _read_rows(source, box, row, out)
    else:
        for index in range(box.start[0], box.stop[0]):
            _read(source, box.row(index, row), out[index - box.start[0], ...])


def _read_rows(source: RandomAccess, box: _Box, row: int, out: Array) -> None:
    """Read whole rows, many at once, and copy what is wanted of them."""
    at_once = max(1, _SLAB // row)
    begin, end = box.start[0], box.stop[0]
    columns = tuple(map(slice, box.start[1:], box.stop[1:]))
    for first in range(begin, end, at_once):
        last = min(first + at_once, end)
        slab = _slab(source, box.offset + first * row, (last - first, *box.shape[1:]), out.dtype)
        out[first - begin : last - begin] = slab[(slice(None), *columns)]


def _slab(source: RandomAccess, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    slab: Array = np.empty(shape, dtype)
    source.read_into(offset, _bytes_of(slab))
    return slab


def _bytes_of(array: Array) -> memoryview:
    """Return the memory of an array that is in one piece, as bytes."""
    return array.reshape(-1).view(np.uint8).data
