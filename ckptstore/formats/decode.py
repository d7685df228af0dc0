"""Takes a payload apart again, ours or one that Keras wrote, so that it can be written for another store."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.contents import parts, read_bytes, values_of
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.reader import OpenPayload, open_payload, open_verified
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.formats.streamed_hdf5 import GROUP
from ckptstore.formats.verify import verify_payload
from ckptstore.formats.zip_writer import crc32
from ckptstore.records import Format
from ckptstore.storage.random_access import RandomAccessFile
from ckptstore.system.arrays import Array

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPayload:
    """A payload as a snapshot, valid while the file is open.

    Attributes:
        snapshot: What it holds; each variable is read when it is written.
        description: What it says of itself, or None in a file that Keras wrote.
    """

    snapshot: Snapshot
    description: dict[str, Any] | None


@contextmanager
def decoded(
    path: Path, format: Format, *, nbytes: int, digest: str, progress: Progress | None = None
) -> Iterator[DecodedPayload]:
    """Open a file that is just what it must be, as a snapshot for another file.

    Each variable is held against its own digest, too, where the file has one, at the moment that it is read.

    Args:
        path: The file.
        format: Its format.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with numbers of bytes as they are read, most of them twice.

    Raises:
        CorruptPayloadError: It is missing, or is not that file.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_verified(path, nbytes=nbytes, digest=digest, progress=progress) as found:
        described = found.contents.description is not None
        description = found.description() if described else None
        digests = {} if description is None else description["variables"]
        variables = tuple(
            _variable(found.source, name, stored, digests.get(name), progress)
            for name, stored in found.contents.variables.items()
        )
        snapshot = Snapshot(
            format=format,
            variables=() if format == "h5" else variables,
            attributes={} if format == "h5" else _attributes(found.source),
            documents=found.documents(),
            state=found.state() if described else None,
            fill=partial(_fill, found.source) if format == "h5" else None,
        )
        yield DecodedPayload(snapshot=snapshot, description=description)


def verify_file(path: Path) -> dict[str, Any] | None:
    """Look through a file that ckptstore or Keras wrote, as far as it can be checked; returns its description, or None.

    One with a description is held against all its digests. One without is checked for its structure, and a ``.keras``
    archive against its CRC-32; a ``.weights.h5`` of Keras has nothing that a flipped bit of a weight would differ from.

    Raises:
        CorruptPayloadError: It is damaged, or is no such file.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as found:
        for stored in found.contents.variables.values():
            if stored.offset is None:
                raise found.source.corrupt(stored.refusal)
        _check_documents(found)
        if found.contents.description is None:
            _check_crc(found)
            return None
        description = found.description()
    # The weights taken out of an archive tell of documents that stayed there.
    outside = {f"{name} is missing" for name in description["documents"]} if found.archive is None else set()
    problems = [problem for problem in verify_payload(path) if problem not in outside]
    if problems:
        raise CorruptPayloadError(path=path, reason=problems[0])
    return description


def _check_documents(found: OpenPayload) -> None:
    if found.archive is None:
        return
    try:
        json.loads(found.documents()["config.json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise found.source.corrupt("its config.json is missing, or is not JSON") from error


def _check_crc(found: OpenPayload) -> None:
    if found.archive is None:
        return
    crc = 0
    for part in parts(found.source, 0, found.source.nbytes):
        crc = crc32(part, crc)
    if crc != found.archive.weights_crc:
        raise found.source.corrupt("its weights differ from their CRC-32 in the archive")


def _variable(
    source: RandomAccessFile,
    name: str,
    stored: StoredDataset,
    expected: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Variable:
    def read() -> Array:
        data = read_bytes(source, stored)
        if expected is not None and digest_of(data.data) != expected["digest"]:
            raise source.corrupt(f"{name} differs from its digest")
        if progress is not None:
            progress(len(data))
        return values_of(source, stored, data)

    return Variable(path=name, shape=stored.shape, dtype=stored.kind.dtype, read=read)


def _attributes(source: RandomAccessFile) -> dict[str, dict[str, str]]:
    """Return the text attributes of all groups; libhdf5 reads them, in a file that was looked through before."""
    found: dict[str, dict[str, str]] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and name != GROUP and not name.startswith(f"{GROUP}/"):
            texts = {key: value for key, value in node.attrs.items() if isinstance(value, str)}
            if texts:
                found[name] = texts

    with h5py.File(_Stream(source), "r") as file:
        note("", file)
        file.visititems(note)
    return found


def _fill(source: RandomAccessFile, target: h5py.File) -> None:
    with h5py.File(_Stream(source), "r") as file:
        for name in file:
            if name != GROUP:
                file.copy(name, target)
        for name, value in file.attrs.items():
            target.attrs[name] = value


class _Stream(io.RawIOBase):
    """A source as the file object that h5py asks for."""

    def __init__(self, source: RandomAccessFile) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._source.nbytes)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.nbytes - self._position))
        self._source.read_into(self._position, view[:count])
        self._position += count
        return count
