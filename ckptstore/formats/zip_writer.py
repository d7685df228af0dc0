"""Writer of ``.keras`` archives in one pass: the documents, then ``model.weights.h5``, all uncompressed.

The training state is inside the weights, not a member of its own: with more than three members Keras unpacks the
whole archive to a temporary directory. Members carry no times, so that equal snapshots make equal archives.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.sink import Sink

try:  # a tenth of zlib's time
    from zlib_ng.zlib_ng import crc32
except ImportError:  # a platform without a build: the same checksums, more slowly
    from zlib import crc32

__all__ = ["WEIGHTS", "archive_nbytes", "crc32", "is_unsafe_name", "write_archive"]

WEIGHTS = "model.weights.h5"
_LOCAL_HEADER, _CENTRAL_HEADER, _END = 30, 46, 22
_DESCRIPTOR, _DESCRIPTOR_64 = 16, 24
_LOCAL_EXTRA_64 = 20
_END_64 = 56 + 20
_LIMIT_64 = zipfile.ZIP64_LIMIT
_MEMBERS_MOST = zipfile.ZIP_FILECOUNT_LIMIT
# Value of a 32-bit field whose real value is in the extra field of this kind.
_IN_EXTRA, _EXTRA_64 = 0xFFFF_FFFF, 1
_VERSION, _VERSION_64 = 20, 45
_SUMS_BEHIND, _UTF_8 = 0x8, 0x800
_UNIX, _MODE = 3, 0o644
_DATE = 1 << 5 | 1  # 1 January 1980, the earliest date of the format


def archive_nbytes(documents: Mapping[str, bytes], weights: int) -> int:
    """Return the size in bytes of the archive that `write_archive` makes of documents and `weights` bytes.

    Raises:
        InvalidArgumentError: A document has an unsafe or reserved name.

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

    The bytes are exactly those of `zipfile` for a stream, by the public specification of the format (PKWARE's
    APPNOTE.TXT, 6.3: sections 4.3.7, 4.3.9, 4.3.12 to 4.3.16 and 4.5.3). The checksums come from a faster function:
    zlib's CRC-32 took a third of the processor time of a save.

    Args:
        sink: Receives the bytes; it need not be seekable.
        documents: Members other than the weights, by name, in order.
        weights: Size of the weights in bytes.
        write_weights: Called with a function that takes the weights' bytes in order.

    Raises:
        Exception: The sink's own errors, unchanged; what was written until then is not an archive.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> write_archive(file, {"config.json": b"{}"}, 3, lambda write: write(b"hdf"))
        >>> zipfile.ZipFile(file).namelist()
        ['config.json', 'model.weights.h5']
    """
    archive = _Archive(sink)
    for name, document in documents.items():
        archive.add(name, len(document), partial(_write_document, document))
    archive.add(WEIGHTS, weights, write_weights)
    archive.finish()


def _write_document(document: bytes, write: Callable[[Any], object]) -> None:
    write(document)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """Directory entry of a member."""

    name: bytes
    flags: int
    offset: int
    nbytes: int
    crc: int


class _Archive:
    """Archive under construction: uncompressed members, each followed by its checksum."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._members: list[_Member] = []
        self._tell = 0

    def add(self, name: str, nbytes: int, write: Callable[[Any], object]) -> None:
        """Write a member of `nbytes` bytes; `write` is called with a function that takes them in order."""
        large = nbytes > _LIMIT_64
        encoded = name.encode()
        flags = _SUMS_BEHIND | (0 if name.isascii() else _UTF_8)
        offset = self._tell
        version, size = (_VERSION_64, _IN_EXTRA) if large else (_VERSION, 0)
        extra = struct.pack("<HHQQ", _EXTRA_64, 16, 0, 0) if large else b""
        facts = (b"PK\3\4", version, flags, 0, 0, _DATE, 0, size, size, len(encoded), len(extra))
        self._write(struct.pack("<4s5H3L2H", *facts) + encoded + extra)
        begin, self._crc = self._tell, 0
        write(self._write_summed)
        if self._tell - begin != nbytes:
            raise ValueError(f"{name} has {self._tell - begin:,} bytes where {nbytes:,} were announced")
        descriptor = struct.pack("<4sLQQ" if large else "<4s3L", b"PK\7\10", self._crc, nbytes, nbytes)
        self._write(descriptor)
        self._members.append(_Member(name=encoded, flags=flags, offset=offset, nbytes=nbytes, crc=self._crc))

    def finish(self) -> None:
        """Write the directory."""
        begin = self._tell
        for member in self._members:
            self._write(_directory_entry(member))
        nbytes, count = self._tell - begin, len(self._members)
        if begin > _LIMIT_64 or nbytes > _LIMIT_64 or count > _MEMBERS_MOST:
            end = self._tell
            facts = (b"PK\6\6", 44, _VERSION_64, _VERSION_64, 0, 0, count, count, nbytes, begin)
            self._write(struct.pack("<4sQ2H2L4Q", *facts))
            self._write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        count, nbytes, begin = min(count, 0xFFFF), min(nbytes, _IN_EXTRA), min(begin, _IN_EXTRA)
        self._write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, nbytes, begin, 0))

    def _write_summed(self, data: Any) -> int:
        self._crc = crc32(data, self._crc)
        return self._write(data)

    def _write(self, data: Any) -> int:
        nbytes = memoryview(data).nbytes
        self._sink.write(data)
        self._tell += nbytes
        return nbytes


def _directory_entry(member: _Member) -> bytes:
    far = []
    size, offset, version = member.nbytes, member.offset, _VERSION
    if size > _LIMIT_64:
        far += [size, size]
        size = _IN_EXTRA
    if offset > _LIMIT_64:
        far.append(offset)
        offset = _IN_EXTRA
    extra = b""
    if far:
        extra = struct.pack(f"<HH{len(far)}Q", _EXTRA_64, 8 * len(far), *far)
        version = _VERSION_64
    made_by = version | _UNIX << 8
    sizes = (member.crc, size, size, len(member.name), len(extra), 0)
    facts = (b"PK\1\2", made_by, version, member.flags, 0, 0, _DATE, *sizes, 0, 0, _MODE << 16, offset)
    return struct.pack("<4s6H3L5H2L", *facts) + member.name + extra


def _member_name(name: str) -> str:
    if is_unsafe_name(name):
        raise InvalidArgumentError(argument="documents", value=name, reason="cannot be a name in an archive")
    return name


def is_unsafe_name(name: str) -> bool:
    """Return True for a member's name that would be unpacked outside the target directory.

    Example:
        >>> is_unsafe_name("assets/vocabulary.txt"), is_unsafe_name("../.bashrc"), is_unsafe_name("C:/x")
        (False, True, True)
    """
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or "" in parts[:-1] or ".." in parts or ":" in parts[0]
