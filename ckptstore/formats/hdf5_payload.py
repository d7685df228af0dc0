"""`Hdf5Payload`: an open payload whose arrays are in an HDF5 file, ours or Keras' own; no libhdf5 lists it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.contents import Contents, read_array, read_bytes, values_of, view_array
from ckptstore.formats.description import digest_of, parse_description, parse_state
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.sharded import regions
from ckptstore.formats.snapshot import TrainingState
from ckptstore.formats.zip_reader import KerasArchive
from ckptstore.storage.random_access import RandomAccess
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    import h5py

    from ckptstore.formats.payload_format import PayloadFormat
    from ckptstore.formats.sharded.verify_share import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Payload:
    """Implementation of `ckptstore.formats.payload_format.OpenPayload`: an HDF5 file, perhaps inside an archive.

    Attributes:
        format: The format that read it.
        source: The HDF5 file.
        contents: The contents of that file.
        archive: The archive around it, if there is one.
    """

    format: PayloadFormat
    source: RandomAccess
    contents: Contents
    archive: KerasArchive | None

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for a damaged payload."""
        return self.source.corrupt(reason)

    def is_described(self) -> bool:
        """Return True if there is a description."""
        return self.contents.description is not None

    def description(self) -> dict[str, Any]:
        """Return the description inside the payload."""
        found = self.contents.description
        if found is None:
            raise self.corrupt("it carries no description; ckptstore did not write it")
        return parse_description(self.source, read_bytes(self.source, found).tobytes())

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype name of each variable, by path."""
        found = self.contents.variables.items()
        return {name: (variable.shape, variable.kind.dtype.name) for name, variable in found}

    def documents(self) -> dict[str, bytes]:
        """Return the members of the archive other than the weights; empty for other formats."""
        return {} if self.archive is None else self.archive.documents()

    @property
    def processes(self) -> int:
        """1: a file is that of one process."""
        return 1

    def state(self, process: int = 0) -> TrainingState | None:
        """Return the training state, checked against its digests, or None if there is none."""
        if process != 0:
            raise InvalidArgumentError(argument="process", value=process, reason="must be 0 for a file")
        expected = self.description()["state"]
        document, stored = self.contents.document, self.contents.arrays
        if expected is None and document is None and not stored:
            return None
        if expected is None or document is None or set(expected["arrays"]) != set(stored):
            raise self.corrupt("its training state is not the one that its description lists")
        text = _checked(self.source, document, expected["document"], "training state")
        arrays = {
            name: _state_array(self.source, stored[name], name, entry)
            for name, entry in expected["arrays"].items()
        }
        return TrainingState(document=parse_state(self.source, text.tobytes()), arrays=arrays)

    def variables(self, as_views: Collection[str] = ()) -> Mapping[str, Array]:
        """Return the variables by path, valid while the payload is open; each is read on access.

        Args:
            as_views: Paths of variables that the caller copies at once: it gets views of the file instead of copies.
        """
        return _Variables(self, as_views)

    def read_region(self, path: str, start: Sequence[int], stop: Sequence[int], out: Array) -> None:
        """Read a region of a variable."""
        regions.read_region(self.source, self.contents.variables[path], start, stop, out)

    def verify_regions(self, regions: Iterable[Region], *, process: int, processes: int) -> int:
        """Return 0: each process verifies all of a file when it opens it."""
        return 0

    def division(self) -> None:
        """Return None: a file is not divided."""

    @contextmanager
    def hdf5(self) -> Iterator[h5py.File]:
        """Open the HDF5 file with h5py; its structure was checked when the payload was opened."""
        import h5py  # neither opening a store nor a save needs it

        with h5py.File(SourceStream(self.source), "r") as file:
            yield file


def _state_array(source: RandomAccess, found: StoredDataset, name: str, entry: Mapping[str, Any]) -> Array:
    what = f"training state {name!r}"
    if list(found.shape) != entry["shape"] or found.kind.dtype.name != entry["dtype"]:
        raise source.corrupt(f"{what} is not what its description says")
    return values_of(source, found, _checked(source, found, entry["digest"], what))


def _checked(source: RandomAccess, found: StoredDataset, digest: str, what: str) -> Array:
    data = read_bytes(source, found)
    if digest_of(data.data) != digest:
        raise source.corrupt(f"{what} differs from its digest")
    return data


class _Variables(Mapping[str, Array]):
    def __init__(self, payload: Hdf5Payload, as_views: Collection[str]) -> None:
        self._payload = payload
        self._as_views = as_views

    def __getitem__(self, name: str) -> Array:
        get = view_array if name in self._as_views else read_array
        return get(self._payload.source, self._payload.contents.variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._payload.contents.variables)

    def __len__(self) -> int:
        return len(self._payload.contents.variables)


class SourceStream(io.RawIOBase):
    """A source as the file object that h5py needs."""

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position."""
        self._position = (0, self._position, self._source.nbytes)[whence] + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on, as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.nbytes - self._position))
        self._source.read_into(self._position, view[:count])
        self._position += count
        return count
