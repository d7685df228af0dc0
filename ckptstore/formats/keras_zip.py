"""A ``.keras`` archive in one pass: its documents, then ``model.weights.h5``, stored and not compressed.

The training state lies in the weights and not in a member of its own: Keras unpacks the whole archive to a
temporary directory as soon as there are more than three members. Members carry no times, so that equal
snapshots make equal archives.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.streaming import Sink

WEIGHTS = "model.weights.h5"
_LOCAL_HEADER, _CENTRAL_HEADER, _END = 30, 46, 22
_DESCRIPTOR, _DESCRIPTOR_64 = 16, 24
_LOCAL_EXTRA_64 = 20
_END_64 = 56 + 20
_LIMIT_64 = zipfile.ZIP64_LIMIT
_MEMBERS_MOST = zipfile.ZIP_FILECOUNT_LIMIT


def archive_nbytes(documents: Mapping[str, bytes], weights: int) -> int:
    """Return the size in bytes of the archive that `write_archive` makes of documents and `weights` bytes.

    Raises:
        InvalidArgumentError: A document has a name that an archive should not hold.

    Example:
        >>> archive_nbytes({"config.json": b"{}"}, 100)
        362
    """
    sizes = {**{name: len(document) for name, document in documents.items()}, WEIGHTS: weights}
    if len(sizes) == len(documents):
        raise InvalidArgumentError(argument="documents", value=WEIGHTS, reason="is the name of the weights")
    offset = directory = 0
    for name, nbytes in sizes.items():
        length = len(_member_name(name).encode())
        large, far = nbytes > _LIMIT_64, offset > _LIMIT_64
        directory += _CENTRAL_HEADER + length + (4 * (large or far)) + 16 * large + 8 * far
        offset += _LOCAL_HEADER + length + _LOCAL_EXTRA_64 * large + nbytes
        offset += _DESCRIPTOR_64 if large else _DESCRIPTOR
    needs_64 = offset > _LIMIT_64 or directory > _LIMIT_64 or len(sizes) > _MEMBERS_MOST
    return offset + directory + _END + _END_64 * needs_64


def write_archive(
    sink: Sink, documents: Mapping[str, bytes], weights: int, write_weights: Callable[[Any], object]
) -> None:
    """Write the archive in one pass.

    Args:
        sink: Where to; it need not be seekable.
        documents: Members beside the weights, by name, in order.
        weights: Size of the weights in bytes.
        write_weights: Called with a function that takes the weights' bytes in order.

    Raises:
        Exception: What the sink raises, unchanged; what was written till then is no archive.
    """
    target = _Latch(sink)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, document in documents.items():
            with archive.open(_member(name), "w", force_zip64=len(document) > _LIMIT_64) as member:
                member.write(document)
        with archive.open(_member(WEIGHTS), "w", force_zip64=weights > _LIMIT_64) as member:
            try:
                write_weights(member.write)
            except BaseException as failure:
                target.failure = failure
                raise


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info


def _member_name(name: str) -> str:
    if is_unsafe_name(name):
        raise InvalidArgumentError(argument="documents", value=name, reason="cannot be a name in an archive")
    return name


def is_unsafe_name(name: str) -> bool:
    """Return True for a member's name that would lead out of the directory that it is unpacked to.

    Example:
        >>> is_unsafe_name("assets/vocabulary.txt"), is_unsafe_name("../.bashrc"), is_unsafe_name("C:/x")
        (False, True, True)
    """
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or "" in parts[:-1] or ".." in parts or ":" in parts[0]


class _Latch:
    """A sink that has failed fails ever after: `zipfile` would write its directory behind the damage."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.failure: BaseException | None = None

    def write(self, data: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        try:
            return self._sink.write(data)
        except BaseException as failure:
            self.failure = failure
            raise

    def tell(self) -> int:
        return self._sink.tell()

    def close(self) -> None:
        """Do nothing, likewise."""

    def flush(self) -> None:
        """Do nothing: the sink's owner finishes it."""
