"""Payload files of every format: encoding a snapshot, and the readers that other rooms use.

There are three formats, told apart by extension: ``.keras`` (Keras' archive of a whole model), ``.weights.h5``
and ``.h5`` (Keras' older whole-model file). Plain Keras loads each of them, and each carries its own description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.description import digest_of
from ckptstore.formats.reader import (
    OpenPayload,
    open_variables,
    open_verified,
    read_description,
    read_documents,
    read_layout,
    read_state,
)
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot
from ckptstore.formats.streamed_hdf5 import StreamedHdf5, is_streamable
from ckptstore.formats.verify import verify_payload
from ckptstore.formats.zip_writer import archive_nbytes, write_archive

__all__ = [
    "EncodedPayload",
    "OpenPayload",
    "encode",
    "is_streamable",
    "open_variables",
    "open_verified",
    "read_description",
    "read_documents",
    "read_layout",
    "read_state",
    "verify_payload",
]


class EncodedPayload:
    """A payload of known size that is not written yet; `encode` makes it.

    Attributes:
        nbytes: Exact size of the file in bytes.
    """

    def __init__(self, snapshot: Snapshot, weights: Any) -> None:
        self._snapshot = snapshot
        self._weights = weights
        self.nbytes: int = weights.nbytes
        if snapshot.format == "keras":
            self.nbytes = archive_nbytes(snapshot.documents, weights.nbytes)

    def write(self, sink: Sink) -> None:
        """Write the payload in one pass; may be called again for another file.

        The sink receives views of the snapshot's arrays. They must not change until the sink is finished.

        Raises:
            InvalidArgumentError: A variable's shape or dtype differs from the snapshot's.
            Exception: The sink's own errors, unchanged; what was written until then is not a payload.
        """
        if self._snapshot.format == "keras":
            write_archive(sink, self._snapshot.documents, self._weights.nbytes, self._weights.write)
        else:
            self._weights.write(sink.write)


def encode(snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedPayload:
    """Lay out a payload: everything but the values of its arrays.

    Args:
        snapshot: What to save. Variables are read one at a time, when they are written. A snapshot with `fill`,
            or with arrays that only h5py can store (text), is encoded in memory right here.
        description: JSON fields that describe the checkpoint; digests of variables, state and documents are added.

    Raises:
        InvalidArgumentError: A name is not allowed in the format, or a value is not JSON.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from ckptstore.formats.snapshot import Variable
        >>> ones = np.ones((2, 3), np.float32)
        >>> kernel = Variable(path="vars/0", shape=ones.shape, dtype=ones.dtype, read=lambda: ones)
        >>> encoded = encode(Snapshot(format="weights", variables=(kernel,)), {"epoch": 3})
        >>> file = io.BytesIO()
        >>> encoded.write(file)
        >>> len(file.getvalue()) == encoded.nbytes
        True
    """
    if snapshot.documents and snapshot.format != "keras":
        names = sorted(snapshot.documents)
        raise InvalidArgumentError(argument="documents", value=names, reason="only a .keras archive has them")
    documents = {name: digest_of(document) for name, document in snapshot.documents.items()}
    if is_streamable(snapshot):
        return EncodedPayload(snapshot, StreamedHdf5(snapshot, description, documents))
    from ckptstore.formats.in_memory_hdf5 import InMemoryHdf5

    return EncodedPayload(snapshot, InMemoryHdf5(snapshot, description, documents))
