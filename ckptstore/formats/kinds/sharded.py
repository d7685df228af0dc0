"""The format ``sharded``: a directory that several processes write, each the parts of the model that it holds.

One process can write it, too. It becomes a file of Keras by an export, which puts one variable together at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.kinds import keras_archive, weights_file
from ckptstore.formats.payload_format import EncodedPayload, OpenPayload, PayloadFormat, Progress
from ckptstore.formats.sharded.decode import decode_sharded
from ckptstore.formats.sharded.description import DESCRIPTION
from ckptstore.formats.sharded.encoding import EncodedSharded
from ckptstore.formats.sharded.opened import OpenSharded
from ckptstore.formats.sharded.shards import member_of
from ckptstore.formats.sharded.verify import verify_sharded
from ckptstore.formats.sharded.verify_share import verify_share
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot
from ckptstore.formats.streamed_hdf5 import is_streamable
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES
from ckptstore.storage.payloads.stored import StoredPayload

_EXPORTS: dict[Format, PayloadFormat] = {
    format.name: format for format in (keras_archive.FORMAT, weights_file.FORMAT)
}


class ShardedFormat:
    """A whole model in a directory: `ckptstore.formats.payload_format.PayloadFormat`."""

    name: Format = "sharded"
    suffix = SUFFIXES["sharded"]
    run_suffix = "-sharded"
    noun = "a directory of shards"
    is_whole_model = True
    allows_weights_only = True
    has_documents = True
    has_shards = True
    is_directory = True
    keras_fills_it = False
    matches_by_order = False
    loading_code = ""
    exports_as: tuple[Format, ...] = tuple(_EXPORTS)

    def streams(self, snapshot: Snapshot) -> bool:
        """Return True if every array can be written without libhdf5."""
        return is_streamable(snapshot)

    def encode(self, snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedSharded:
        """Lay out the members of this process."""
        return EncodedSharded(snapshot, description)

    def recognises(self, stored: StoredPayload) -> bool:
        """Return True if it has a description and the member of process 0."""
        return {DESCRIPTION, member_of(0)} <= set(stored.members)

    @contextmanager
    def open(self, stored: StoredPayload) -> Iterator[OpenSharded]:
        """Read the description."""
        yield OpenSharded(self, weights_file.FORMAT, stored)

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
        """Verify the description, the documents, and the members of the share."""
        verify_share(
            stored, nbytes=nbytes, digest=digest, process=process, processes=processes, progress=progress
        )

    def verify(self, opened: OpenPayload) -> list[str]:
        """Compare all digests, in one pass."""
        return verify_sharded(_sharded(opened))

    def check_structure(self, opened: OpenPayload) -> None:
        """Check that each part is where the description says."""
        found = _sharded(opened)
        for path, variable in found.described.variables.items():
            for part in variable.grid.parts():
                found.dataset(path, part)

    def decode(self, opened: OpenPayload, progress: Progress | None = None) -> Snapshot:
        """Decode it into a snapshot whose variables are whole."""
        return decode_sharded(_sharded(opened), progress)

    def export_nbytes(self, stored: StoredPayload, format: Format) -> int:
        """Return the size of the file."""
        with self._converted(stored, format) as encoded:
            return encoded.nbytes

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
        """Verify the payload, then put one variable after the other together, each checked again as it is read."""
        stored.verify(nbytes, digest, progress)
        with self._converted(stored, format) as encoded:
            (file,) = encoded.members
            file.write(sink)

    @contextmanager
    def _converted(self, stored: StoredPayload, format: Format) -> Iterator[EncodedPayload]:
        target = _EXPORTS[format]
        with self.open(stored) as opened:
            snapshot = self.decode(opened)
            if target.has_documents and not snapshot.documents:
                raise InvalidArgumentError(
                    argument="format",
                    value=format,
                    reason="the checkpoint was saved without the model's configuration",
                    hint=f"a {weights_file.FORMAT.suffix} file holds its weights",
                )
            documents = snapshot.documents if target.has_documents else {}
            fields = {**opened.described.fields, "format": format}
            yield target.encode(replace(snapshot, format=format, documents=documents, shards=None), fields)


def _sharded(opened: OpenPayload) -> OpenSharded:
    assert isinstance(opened, OpenSharded)
    return opened


FORMAT = ShardedFormat()
