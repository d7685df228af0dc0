"""The format ``keras``: Keras' archive of a whole model, with the HDF5 file of its weights inside, not compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ckptstore.formats.contents import Contents
from ckptstore.formats.hdf5.reader import read_datasets
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.formats.kinds.hdf5_format import EncodedHdf5, Hdf5Format
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot
from ckptstore.formats.zip_reader import KerasArchive
from ckptstore.formats.zip_writer import archive_nbytes, write_archive
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.storage.random_access import section_of

_SIGNATURE = b"PK\3\4"


class EncodedArchive(EncodedHdf5):
    """An archive that is not written yet.

    Args:
        documents: Its members other than the weights.
        weights: The HDF5 file, laid out.
    """

    def __init__(self, documents: Mapping[str, bytes], weights: Any) -> None:
        super().__init__(weights)
        self._documents = documents
        self.nbytes = archive_nbytes(documents, weights.nbytes)

    def write(self, sink: Sink) -> None:
        """Write the archive in one pass; see `ckptstore.formats.payload_format.EncodedMember`."""
        write_archive(sink, self._documents, self._weights.nbytes, self._weights.write)


class KerasArchiveFormat(Hdf5Format):
    """A whole model: configuration, layers' files, and the weights, which are a file of the format ``weights``."""

    name: Format = "keras"
    suffix = SUFFIXES["keras"]
    run_suffix = ""
    noun = "a .keras file, of a whole model,"
    is_whole_model = True
    has_documents = True
    loading_code = 'model = keras.saving.load_model("{file}")'
    exports_as: tuple[Format, ...] = ("keras", "weights")

    def _encoded(self, snapshot: Snapshot, weights: Any) -> EncodedHdf5:
        return EncodedArchive(snapshot.documents, weights)

    def recognises(self, stored: StoredPayload) -> bool:
        """Return True if it begins as an archive does."""
        file = stored.file()
        return file.read(0, min(len(_SIGNATURE), file.nbytes)) == _SIGNATURE

    @contextmanager
    def open(self, stored: StoredPayload) -> Iterator[Hdf5Payload]:
        """List the archive, and the HDF5 file in it, without unpacking."""
        file = stored.file()
        archive = KerasArchive(file)
        with section_of(file, *archive.weights()) as source:
            yield Hdf5Payload(
                format=self, source=source, contents=Contents(read_datasets(source)), archive=archive
            )

    def _part(self, stored: StoredPayload, format: Format) -> tuple[int, int]:
        if format == "weights":
            return KerasArchive(stored.file()).weights()
        return super()._part(stored, format)


FORMAT = KerasArchiveFormat()
