"""Reader of ``.keras`` archives that trusts no name, size or content of their members."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.formats.zip_writer import WEIGHTS, is_unsafe_name
from ckptstore.storage.random_access import RandomAccess

_LOCAL_HEADER = 30
# DEFLATE reaches 1032 at most; Keras stores its members, and text rarely gets past 20.
_DOCUMENT_EXPANSION_MOST = 100
# What all documents may unpack to: so many times the file's size, and so many bytes besides.
_DOCUMENTS_MOST, _DOCUMENTS_ALLOWANCE = 4, 16 << 20
# Bytes of the archive's directory, of which each member takes 46 and its name: so many, or this part of the file, which
# holds each name once more.
_DIRECTORY_MOST, _DIRECTORY_PART = 1 << 20, 4
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # a version that zipfile does not know
    RuntimeError,  # an encrypted member
    ValueError,
    IndexError,
    OverflowError,
)


class KerasArchive:
    """The members of a ``.keras`` file.

    Args:
        file: The whole file.

    Raises:
        CorruptPayloadError: It is not an archive, or a member would be unpacked elsewhere, is there twice, or shares
            bytes with another.
    """

    def __init__(self, file: RandomAccess) -> None:
        self._file = file
        self._stream = _AsFile(file)
        with self._translated(), self._opened() as archive:
            members = archive.infolist()
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise file.corrupt("its archive has two members of one name")
        for name in self._members:
            if is_unsafe_name(name):
                raise file.corrupt(f"its archive has a member named {name!r}")
        self._check_disjoint()

    def _check_disjoint(self) -> None:
        """Check that no two members share bytes, which could be unpacked as often as there are members."""
        spans = sorted(
            (member.header_offset, member.header_offset + _LOCAL_HEADER + member.compress_size)
            for member in self._members.values()
        )
        for (_, end), (begin, _) in pairwise(spans):
            if begin < end:
                raise self._file.corrupt("its archive has members that share bytes")

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        self._stream.most = max(_DIRECTORY_MOST, self._file.nbytes // _DIRECTORY_PART)
        with zipfile.ZipFile(self._stream) as archive:
            self._stream.most = self._file.nbytes
            yield archive

    def weights(self) -> tuple[int, int]:
        """Return the weights' offset in the file, and their size in bytes."""
        member = self._members.get(WEIGHTS)
        if member is None:
            raise self._file.corrupt(f"its archive has no {WEIGHTS}")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise self._file.corrupt(f"{WEIGHTS} is compressed, as Keras and ckptstore do not write it")
        header = self._file.read(member.header_offset, _LOCAL_HEADER)
        if header[:4] != b"PK\3\4" or member.flag_bits & 1:
            raise self._file.corrupt(f"{WEIGHTS} is not where the archive says")
        start = member.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        self._file.read(start + member.file_size, 0)
        return start, member.file_size

    @property
    def weights_crc(self) -> int:
        """CRC-32 of the weights, as listed in the archive; Keras refuses weights that differ from it."""
        return self._members[WEIGHTS].CRC

    def documents(self) -> dict[str, bytes]:
        """Return the members other than the weights, by name, checked against their CRC-32."""
        found = {}
        unpacked = sum(member.file_size for name, member in self._members.items() if name != WEIGHTS)
        if unpacked > _DOCUMENTS_MOST * self._file.nbytes + _DOCUMENTS_ALLOWANCE:
            raise self._file.corrupt(f"its documents claim {unpacked:,} bytes that are not there")
        with self._translated(), self._opened() as archive:
            for name, member in self._members.items():
                if name != WEIGHTS and not member.is_dir():
                    found[name] = self._document(archive, member)
        return found

    def _document(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._file.corrupt(f"{member.filename!r} is compressed in a way that Keras does not use")
        stored = min(member.compress_size, self._file.nbytes)
        if member.file_size > _DOCUMENT_EXPANSION_MOST * stored:
            raise self._file.corrupt(
                f"{member.filename!r} claims {member.file_size:,} bytes that are not there"
            )
        with archive.open(member) as stream:
            data = stream.read(member.file_size)
        if len(data) != member.file_size:
            raise self._file.corrupt(f"{member.filename!r} is cut short")
        return data

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except CorruptPayloadError:
            raise
        except _ZIP_ERRORS as error:
            # zipfile reports a file that cannot be read as one that is not an archive.
            if self._stream.failure is not None:
                raise self._stream.failure from error
            raise self._file.corrupt(f"it is not a whole .keras archive: {error}") from error


class _AsFile:
    """A source as the file object that `zipfile` needs."""

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._position = 0
        self.most = source.nbytes
        self.failure: StorageError | None = None

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._source.nbytes)[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(self._source.nbytes - self._position, 0)
        count = left if count < 0 else min(count, left)
        if count > self.most:
            raise self._source.corrupt("its archive's directory is larger than it can be")
        try:
            data = self._source.read(self._position, count) if count else b""
        except StorageError as error:
            self.failure = error
            raise
        self._position += count
        return data

    def close(self) -> None:
        """Do nothing: the source is closed by its owner."""
