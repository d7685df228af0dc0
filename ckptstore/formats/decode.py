"""Decoding of payloads, ours or Keras' own, back into snapshots that can be written elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from ckptstore.formats.contents import read_bytes, values_of
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.reader import open_verified
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.formats.streamed_hdf5 import GROUP
from ckptstore.records import Format
from ckptstore.storage.random_access import RandomAccessFile
from ckptstore.system.arrays import Array

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPayload:
    """A payload decoded into a snapshot, valid while the file is open.

    Attributes:
        snapshot: The contents; each variable is read when it is written.
        description: The description inside the payload, or None in a file that Keras wrote.
    """

    snapshot: Snapshot
    description: dict[str, Any] | None


@contextmanager
def decoded(
    path: Path, format: Format, *, nbytes: int, digest: str, progress: Progress | None = None
) -> Iterator[DecodedPayload]:
    """Open a file, verify its size and digest, and decode it into a snapshot.

    Where the file has a description, each variable is checked against its own digest when it is read.

    Args:
        path: The file.
        format: Its format.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with the number of bytes of each part that was read; most bytes are read twice.

    Raises:
        CorruptPayloadError: The file is missing, or differs in size or digest.
        StorageError: It cannot be read, which does not mean that it is damaged.
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
    """Return the text attributes of all groups; libhdf5 reads them, in a file that was checked before."""
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
    """A source as the file object that h5py needs."""

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
