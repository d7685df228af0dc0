"""`Hdf5Format`: what the formats share whose arrays are in an HDF5 file, alone or inside an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats import verify
from ckptstore.formats.contents import Contents
from ckptstore.formats.copy import copy_verified
from ckptstore.formats.decode import decode_hdf5
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import read_datasets
from ckptstore.formats.hdf5.writer import SIGNATURE
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.formats.payload_format import EncodedMember, OpenPayload, Progress, write_members
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot
from ckptstore.formats.streamed_hdf5 import StreamedHdf5, is_streamable
from ckptstore.records import Format
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.stored import ONLY, StoredPayload


class EncodedHdf5:
    """A payload that is one HDF5 file; it is its own only member.

    Args:
        weights: The HDF5 file, laid out.

    Attributes:
        name: The name of the only member.
        nbytes: Exact size of the file in bytes.
    """

    name = ONLY

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self.nbytes: int = weights.nbytes

    @property
    def members(self) -> Sequence[EncodedMember]:
        """The file itself."""
        return (self,)

    def write_to(self, upload: Upload) -> None:
        """Write the file as the only member."""
        write_members(self, upload)

    def write(self, sink: Sink) -> None:
        """Write the file in one pass; see `ckptstore.formats.payload_format.EncodedMember`."""
        self._weights.write(sink.write)


class Hdf5Format:
    """The common half of a `ckptstore.formats.payload_format.PayloadFormat`; a subclass has the other facts."""

    name: Format
    suffix: str
    run_suffix: str
    noun: str
    is_whole_model: bool
    allows_weights_only = True
    has_documents = False
    has_shards = False
    is_directory = False
    keras_fills_it = False
    matches_by_order = False
    loading_code: str
    exports_as: tuple[Format, ...]

    def streams(self, snapshot: Snapshot) -> bool:
        """Return True if every array can be written without libhdf5."""
        return is_streamable(snapshot)

    def encode(self, snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedHdf5:
        """Lay out the HDF5 file; in memory, if Keras fills it, or if only h5py can store an array (text)."""
        if snapshot.documents and not self.has_documents:
            names = sorted(snapshot.documents)
            raise InvalidArgumentError(
                argument="documents", value=names, reason="only a .keras archive has them"
            )
        documents = {name: digest_of(document) for name, document in snapshot.documents.items()}
        if is_streamable(snapshot):
            return self._encoded(snapshot, StreamedHdf5(snapshot, description, documents))
        from ckptstore.formats.in_memory_hdf5 import InMemoryHdf5

        return self._encoded(snapshot, InMemoryHdf5(snapshot, description, documents))

    def _encoded(self, snapshot: Snapshot, weights: Any) -> EncodedHdf5:
        return EncodedHdf5(weights)

    def recognises(self, stored: StoredPayload) -> bool:
        """Return True if it begins as HDF5 files do."""
        file = stored.file()
        return file.read(0, min(len(SIGNATURE), file.nbytes)) == SIGNATURE

    @contextmanager
    def open(self, stored: StoredPayload) -> Iterator[Hdf5Payload]:
        """List the HDF5 file."""
        source = stored.file()
        yield Hdf5Payload(format=self, source=source, contents=Contents(read_datasets(source)), archive=None)

    def verify_share(
        self,
        stored: StoredPayload,
        *,
        nbytes: int,
        digest: str,
        process: int,
        processes: int,
        progress: Progress | None = None,
    ) -> None:
        """Verify the whole file: any value in it may be needed."""
        stored.verify(nbytes, digest, progress)

    def verify(self, opened: OpenPayload) -> list[str]:
        """Compare all digests, in one pass."""
        return verify.verify_hdf5(_hdf5(opened))

    def check_structure(self, opened: OpenPayload) -> None:
        """Check the HDF5 file's structure."""
        verify.check_structure(_hdf5(opened))

    def decode(self, opened: OpenPayload, progress: Progress | None = None) -> Snapshot:
        """Decode the HDF5 file."""
        return decode_hdf5(_hdf5(opened), progress)

    def _part(self, stored: StoredPayload, format: Format) -> tuple[int, int]:
        """Return offset and size of the bytes that are a file of a format: here all."""
        assert format in self.exports_as
        return 0, stored.nbytes

    def export_nbytes(self, stored: StoredPayload, format: Format) -> int:
        """Return the size of those bytes."""
        return self._part(stored, format)[1]

    def export(
        self,
        stored: StoredPayload,
        format: Format,
        sink: Sink,
        *,
        nbytes: int,
        digest: str,
        progress: Progress | None = None,
    ) -> None:
        """Copy those bytes, and digest the whole payload on the way."""
        part = self._part(stored, format)
        copy_verified(stored, sink, nbytes=nbytes, digest=digest, part=part, progress=progress)


def _hdf5(opened: OpenPayload) -> Hdf5Payload:
    assert isinstance(opened, Hdf5Payload)
    return opened
