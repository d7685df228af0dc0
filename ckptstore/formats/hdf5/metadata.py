"""Reads the metadata of an HDF5 file under a budget, so that no file costs more than a small multiple of its size.

In a file that a program has written, no two structures share bytes. So the parts that are read once amount to no more
than the file, however its links lead, and a file in which they overlap is refused.
"""

from __future__ import annotations

from ckptstore.storage.random_access import RandomAccess

# Bytes of one piece of metadata; the largest that Keras writes is a list of 64 KiB.
METADATA_MOST = 64 << 20
# Bytes that any file may cost besides, for what is looked up repeatedly, and for names.
_ALLOWANCE = 1 << 20
# Names are charged each time that a path repeats them: groups within groups could make endless paths of few bytes.
_NAMES_MOST = 4


class Metadata:
    """The metadata of one file.

    Args:
        source: The file.
    """

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._taken: list[tuple[int, int]] = []
        self._left_to_take = source.nbytes
        self._left_to_read = source.nbytes + _ALLOWANCE
        self._left_for_names = _NAMES_MOST * source.nbytes + _ALLOWANCE

    def take(self, offset: int, count: int) -> bytes:
        """Return the bytes of a structure, or of a part of one, that is read once.

        Raises:
            CorruptPayloadError: There are no such bytes, or more were taken than the file has.
        """
        self._left_to_take -= count
        if count > METADATA_MOST or self._left_to_take < 0:
            raise self._source.corrupt("its HDF5 metadata are larger than they can be")
        data = self._source.read(offset, count)
        if count:
            self._taken.append((offset, offset + count))
        return data

    def read(self, offset: int, count: int) -> bytes:
        """Return some bytes of a structure that are looked up repeatedly; raises the errors of `take`."""
        self._left_to_read -= count
        if self._left_to_read < 0:
            raise self._source.corrupt("its HDF5 metadata are larger than they can be")
        return self._source.read(offset, count)

    def charge_name(self, length: int) -> None:
        """Charge a name, or a path, of some characters, before it is made.

        Raises:
            CorruptPayloadError: The names of the file are longer than they can be.
        """
        self._left_for_names -= length
        if self._left_for_names < 0:
            raise self._source.corrupt("the names of its arrays are longer than they can be")

    def check_disjoint(self, values: list[tuple[int, int]]) -> None:
        """Check that no two structures share bytes, and none shares any with the values of an array.

        Args:
            values: Begin and end of each array's values; that two of them share bytes is not looked for.

        Raises:
            CorruptPayloadError: Some do.
        """
        found = sorted(
            [*((begin, end, False) for begin, end in self._taken), *((*value, True) for value in values)]
        )
        last, is_value = 0, True
        for begin, end, of_value in found:
            if begin < last and not (is_value and of_value):
                raise self._source.corrupt("parts of its HDF5 metadata overlap")
            if end > last:
                last, is_value = end, of_value
