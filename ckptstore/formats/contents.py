"""Contents of a payload's HDF5 file: Keras' variables, our description and training state, and the bytes between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xxhash

from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.streamed_hdf5 import DESCRIPTION, STATE_ARRAYS, STATE_DOCUMENT, unescaped
from ckptstore.storage.random_access import RandomAccess
from ckptstore.storage.read_ahead import parts_without_thread
from ckptstore.system.arrays import Array


class Contents:
    """The datasets of one file, sorted by their role.

    Attributes:
        variables: Keras' variables, by path.
        description: Our description, or None in a file that Keras wrote.
        document: JSON document of the training state, or None.
        arrays: Arrays of the training state, by name.
    """

    def __init__(self, datasets: Mapping[str, StoredDataset]) -> None:
        self.variables = dict(datasets)
        self.description = self.variables.pop(DESCRIPTION, None)
        self.document = self.variables.pop(STATE_DOCUMENT, None)
        ours = [path for path in self.variables if path.startswith(STATE_ARRAYS)]
        self.arrays = {unescaped(path.removeprefix(STATE_ARRAYS)): self.variables.pop(path) for path in ours}

    def all(self) -> Iterator[StoredDataset]:
        """Yield every dataset, ours last."""
        yield from self.variables.values()
        yield from self.arrays.values()
        yield from (found for found in (self.document, self.description) if found is not None)


def extents(source: RandomAccess, contents: Contents) -> list[tuple[int, int, StoredDataset]]:
    """Return (begin, end, dataset) of all values, in the order of the file.

    Raises:
        CorruptPayloadError: Two arrays share bytes, or an array's values are not in one piece.
    """
    found = []
    for dataset in contents.all():
        if dataset.offset is None:
            raise source.corrupt(dataset.refusal)
        if dataset.nbytes:
            found.append((dataset.offset, dataset.offset + dataset.nbytes, dataset))
    found.sort(key=lambda extent: extent[0])
    for (_, end, first), (begin, _, second) in pairwise(found):
        if begin < end:
            raise source.corrupt(f"{first.path!r} and {second.path!r} share bytes")
    return found


def gaps_digest(source: RandomAccess, contents: Contents) -> str:
    """Return the xxh3_128, as 32 hex digits, of all bytes of the file that belong to no array."""
    digest = xxhash.xxh3_128()
    position = 0
    for begin, end, _ in [*extents(source, contents), (source.nbytes, source.nbytes, None)]:
        for part in parts(source, position, begin):
            digest.update(part)
        position = end
    return digest.hexdigest()


def parts(source: RandomAccess, begin: int, end: int) -> Iterator[bytes | memoryview]:
    """Yield the bytes from `begin` to `end`; each part is valid until the next one is read."""
    if end - begin <= 1 << 16:
        yield source.read(begin, end - begin)
        return
    yield from parts_without_thread(
        lambda offset, buffer: source.read_into(begin + offset, buffer), end - begin
    )


def read_bytes(source: RandomAccess, dataset: StoredDataset) -> npt.NDArray[np.uint8]:
    """Read an array's bytes as they are stored.

    Raises:
        CorruptPayloadError: The bytes are not in one piece, or are missing.
        StorageError: The disk cannot be read.
    """
    if dataset.offset is None:
        raise source.corrupt(dataset.refusal)
    data = np.empty(dataset.nbytes, np.uint8)
    source.read_into(dataset.offset, data.data)
    return data


def values_of(source: RandomAccess, dataset: StoredDataset, data: npt.NDArray[np.uint8]) -> Array:
    """Return the array that stored bytes represent: a view of them, except for float8 and text."""
    if dataset.texts is not None:
        found = dataset.texts.texts(data.tobytes(), dataset.path)
        texts = np.empty(len(found), object)
        texts[:] = found
        return texts.reshape(dataset.shape)
    values: Array = data.view(dataset.kind.stored)
    if dataset.kind.restore is not None:
        values = dataset.kind.restore(values)
    return values.reshape(dataset.shape)


def view_array(source: RandomAccess, dataset: StoredDataset) -> Array:
    """Return a read-only view of an array's values in the file; see `ckptstore.storage.random_access`.

    Raises:
        CorruptPayloadError: The values are not in one piece, or are missing.
        StorageError: The disk cannot be read.
    """
    if dataset.offset is None:
        raise source.corrupt(dataset.refusal)
    data = np.frombuffer(source.view(dataset.offset, dataset.nbytes), np.uint8)
    return values_of(source, dataset, data)


def read_array(source: RandomAccess, dataset: StoredDataset) -> Array:
    """Read an array's values; raises the errors of `read_bytes`."""
    return values_of(source, dataset, read_bytes(source, dataset))
