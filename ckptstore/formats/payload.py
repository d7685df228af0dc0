"""Payloads of every format, and files like them: encoded, opened, verified and decoded, by the format's own module.

Functions take a payload of a store (`ckptstore.storage.payloads.interface.PayloadRef`), or the path of a file outside
one. There are four formats so far, told apart by the end of the name: ``.keras`` (Keras' archive of a whole model),
``.weights.h5``, ``.h5`` (Keras' older whole-model file), which plain Keras loads, and ``.sharded``, a directory. Each
carries its own description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.payload_format import EncodedPayload, OpenPayload, PayloadFormat
from ckptstore.formats.registry import by_name, format_of
from ckptstore.formats.sharded.shards import Division
from ckptstore.formats.snapshot import Snapshot, TrainingState
from ckptstore.records import Checkpoint, Format
from ckptstore.storage.payloads.at import payload_of
from ckptstore.storage.payloads.local_copy import temporary_file
from ckptstore.storage.payloads.local_reading import LooseFile
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.system.arrays import Array

Progress = Callable[[int], object]


class Openable(Protocol):
    """A payload that can be opened: `PayloadRef` and `LooseFile` of `ckptstore.storage.payloads`."""

    def open(self) -> AbstractContextManager[StoredPayload]:
        """Open it."""
        ...


Source = Openable | Path


def _openable(source: Source) -> Openable:
    return LooseFile(source) if isinstance(source, Path) else source


def encode(snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedPayload:
    """Lay out a payload in the snapshot's format: everything but the values of its arrays.

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
        >>> for member in encoded.members:
        ...     member.write(file)
        >>> len(file.getvalue()) == encoded.nbytes
        True
    """
    return by_name(snapshot.format).encode(snapshot, description)


@contextmanager
def open_payload(source: Source) -> Iterator[OpenPayload]:
    """Open a payload and list its contents.

    Raises:
        CorruptPayloadError: It is missing or damaged, or is not a payload.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with _openable(source).open() as stored, format_of(stored).open(stored) as payload:
        yield payload


@contextmanager
def open_verified(
    source: Source, *, nbytes: int, digest: str, progress: Progress | None = None
) -> Iterator[OpenPayload]:
    """Open a payload, verify its size and digest, then list its contents.

    Everything that is read afterwards comes from the very file that was verified, even if its name is reused.

    Args:
        source: The payload.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with the number of bytes of each part that was digested.

    Raises:
        CorruptPayloadError: It is missing, differs in size or digest, or is not a payload.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with _openable(source).open() as stored:
        stored.verify(nbytes, digest, progress)
        with format_of(stored).open(stored) as payload:
            yield payload


def open_checkpoint(
    checkpoint: Checkpoint, progress: Progress | None = None
) -> AbstractContextManager[OpenPayload]:
    """Open a checkpoint's payload, and check first that it is what was saved; raises as `open_verified`."""
    return open_verified(
        payload_of(checkpoint), nbytes=checkpoint.nbytes, digest=checkpoint.digest, progress=progress
    )


@contextmanager
def open_share(
    checkpoint: Checkpoint, process: int, processes: int, progress: Progress | None = None
) -> Iterator[OpenPayload]:
    """Open a checkpoint's payload in one of several processes that all open it; each verifies its share.

    What a process reads besides its share it passes to `OpenPayload.verify_regions` first. No process waits for
    another here, so that only the caller can know whether all have found it whole.

    Args:
        checkpoint: The checkpoint.
        process: The number of this process, from 0.
        processes: The number of processes; with 1 this is `open_checkpoint`.
        progress: Called with the number of bytes of each part that was digested.

    Raises:
        CorruptPayloadError: The payload is damaged, as far as this process has read it.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with payload_of(checkpoint).open() as stored:
        format = format_of(stored)
        format.verify_share(
            stored,
            nbytes=checkpoint.nbytes,
            digest=checkpoint.digest,
            process=process,
            processes=processes,
            progress=progress,
        )
        with format.open(stored) as payload:
            yield payload


def checkpoint_as_file(checkpoint: Checkpoint) -> AbstractContextManager[Path]:
    """Return a checkpoint as a local file that Keras reads, for the block: its payload, or a temporary copy.

    A payload that is a directory is exported to the temporary file, one variable at a time.

    Raises:
        CorruptPayloadError: It is exported, and is damaged.
        StorageError: It cannot be read.
        OSError: The directory for temporary files is full.
    """
    format = by_name(checkpoint.format)
    if not format.is_directory:
        return payload_of(checkpoint).as_local_file()
    return _exported(checkpoint, format)


@contextmanager
def _exported(checkpoint: Checkpoint, format: PayloadFormat) -> Iterator[Path]:
    with payload_of(checkpoint).open() as stored:
        file_format = file_format_of(stored, format)
        write = partial(
            format.export, stored, file_format, nbytes=checkpoint.nbytes, digest=checkpoint.digest
        )
        with temporary_file(f"model{by_name(file_format).suffix}", write) as path:
            yield path


def file_format_of(stored: StoredPayload, format: PayloadFormat) -> Format:
    """Return the format of the file that holds as much as possible of a payload: without a configuration, weights.

    Raises:
        CorruptPayloadError: The payload is damaged.
        StorageError: It cannot be read.
    """
    first = format.exports_as[0]
    if not format.is_directory:
        return first
    with format.open(stored) as opened:
        has_documents = bool(opened.documents())
    return next(name for name in format.exports_as if has_documents or not by_name(name).has_documents)


def read_description(source: Source) -> dict[str, Any]:
    """Return the description inside a payload.

    Raises:
        CorruptPayloadError: It is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.description()


def read_layout(source: Source) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype name of each variable, by path; works for files that Keras wrote, too.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.layout()


def read_division(source: Source) -> Division | None:
    """Return how a payload is divided among processes; None in a format of one process.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.division()


def read_documents(source: Source) -> dict[str, bytes]:
    """Return what a payload holds besides arrays, such as the model's configuration; empty where it has none.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.documents()


def read_state(source: Source) -> TrainingState | None:
    """Return a payload's training state, checked against its digests, or None if there is none.

    Raises:
        CorruptPayloadError: It is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.state()


@contextmanager
def open_variables(source: Source) -> Iterator[Mapping[str, Array]]:
    """Open a payload and yield its variables by path; each is read on access, straight into its own memory.

    The values are not checked against their digests: check the digest of the whole file first.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        yield payload.variables()


def verify_payload(source: Source) -> list[str]:
    """Check a payload against the digests inside it, in one pass; return one line for each difference.

    Raises:
        CorruptPayloadError: It is missing, or too damaged to be compared part by part.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(source) as payload:
        return payload.format.verify(payload)


def verify_file(path: Path) -> dict[str, Any] | None:
    """Check a file that ckptstore or Keras wrote as far as it can be checked; return its description, or None.

    A file with a description is checked against all its digests. A file without one is checked for its structure, and
    a ``.keras`` archive against its CRC-32. A ``.weights.h5`` of Keras has no checksum: a flipped bit in a weight
    cannot be found.

    Raises:
        CorruptPayloadError: The file is damaged, or of another kind.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(path) as found:
        found.format.check_structure(found)
        if not found.is_described():
            return None
        description = found.description()
        # Weights that were taken out of an archive still list the documents that stayed there.
        documents = () if found.format.has_documents else description["documents"]
        outside = {f"{name} is missing" for name in documents}
        problems = [problem for problem in found.format.verify(found) if problem not in outside]
    if problems:
        raise CorruptPayloadError(path=path, reason=problems[0])
    return description


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPayload:
    """A payload decoded into a snapshot, valid while it is open.

    Attributes:
        snapshot: The contents; each variable is read when it is written.
        description: The description inside the payload, or None in a file that Keras wrote.
    """

    snapshot: Snapshot
    description: dict[str, Any] | None


@contextmanager
def decoded(
    source: Source, *, nbytes: int, digest: str, progress: Progress | None = None
) -> Iterator[DecodedPayload]:
    """Open a payload, verify its size and digest, and decode it into a snapshot.

    Where it has a description, each variable is checked against its own digest when it is read.

    Args:
        source: The payload.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with the number of bytes of each part that was read; most bytes are read twice.

    Raises:
        CorruptPayloadError: It is missing, or differs in size or digest.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_verified(source, nbytes=nbytes, digest=digest, progress=progress) as found:
        description = found.description() if found.is_described() else None
        yield DecodedPayload(snapshot=found.format.decode(found, progress), description=description)
