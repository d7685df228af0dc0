"""Reads payloads, ours and Keras' own: an HDF5 file, or the one inside a ``.keras`` archive where it lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore.formats.contents import Contents, read_array, read_bytes, values_of, view_array
from ckptstore.formats.description import digest_of, parse_description, parse_state
from ckptstore.formats.hdf5.reader import StoredDataset, read_datasets
from ckptstore.formats.snapshot import TrainingState
from ckptstore.formats.zip_reader import KerasArchive
from ckptstore.records import SUFFIXES
from ckptstore.storage.random_access import RandomAccessFile, open_random_access, section_of
from ckptstore.system.arrays import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPayload:
    """An open payload: its HDF5 file, what that holds, and, in an archive, the members beside it."""

    source: RandomAccessFile
    contents: Contents
    archive: KerasArchive | None

    def description(self) -> dict[str, Any]:
        """Return the JSON that the payload says of itself."""
        found = self.contents.description
        if found is None:
            raise self.source.corrupt("it carries no description; ckptstore did not write it")
        return parse_description(self.source, read_bytes(self.source, found).tobytes())

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype name of each variable by its path."""
        found = self.contents.variables.items()
        return {name: (variable.shape, variable.kind.dtype.name) for name, variable in found}

    def documents(self) -> dict[str, bytes]:
        """Return the members of an archive beside the weights; nothing for other formats."""
        return {} if self.archive is None else self.archive.documents()

    def state(self) -> TrainingState | None:
        """Return the training state, checked against its digests, or None where there is none."""
        expected = self.description()["state"]
        document, stored = self.contents.document, self.contents.arrays
        if expected is None and document is None and not stored:
            return None
        if expected is None or document is None or set(expected["arrays"]) != set(stored):
            raise self.source.corrupt("its training state is not the one that its description lists")
        text = _checked(self.source, document, expected["document"], "training state")
        arrays = {
            name: _state_array(self.source, stored[name], name, entry)
            for name, entry in expected["arrays"].items()
        }
        return TrainingState(document=parse_state(self.source, text.tobytes()), arrays=arrays)

    def variables(self, looked_at: Collection[str] = ()) -> Mapping[str, Array]:
        """Return the variables by path, valid while the payload is open; each is read when it is asked for.

        Args:
            looked_at: Paths of those that are copied at once by whoever asks: these are not read into memory of
                their own.
        """
        return _Variables(self, looked_at)


# What makes a name in quarantine unique.
_NUMBER = re.compile(r"\.[0-9]+$")


@contextmanager
def open_payload(path: Path) -> Iterator[OpenPayload]:
    """Open a payload and list what it holds.

    Raises:
        CorruptPayloadError: It is missing or damaged, or is no payload.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_random_access(path) as file, _listed(file) as payload:
        yield payload


@contextmanager
def open_verified(
    path: Path, *, nbytes: int, digest: str, progress: Callable[[int], object] | None = None
) -> Iterator[OpenPayload]:
    """Open a payload that is just the file it must be, and list what it holds; nothing is listed before that is known.

    What is read afterwards is read of the very file that was verified, whatever happens to its name.

    Args:
        path: The payload.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with numbers of bytes as they are digested.

    Raises:
        CorruptPayloadError: It is missing, is another file, or is no payload.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_random_access(path) as file:
        if file.nbytes != nbytes:
            raise file.corrupt(f"it has {file.nbytes:,} bytes, {nbytes:,} were saved")
        found = file.digest(progress)
        if found != digest:
            raise file.corrupt(f"its digest is {found}, {digest} was saved")
        with _listed(file) as payload:
            yield payload


@contextmanager
def _listed(file: RandomAccessFile) -> Iterator[OpenPayload]:
    if not _NUMBER.sub("", file.path.name).endswith(SUFFIXES["keras"]):
        yield OpenPayload(source=file, contents=Contents(read_datasets(file)), archive=None)
        return
    archive = KerasArchive(file)
    with section_of(file, *archive.weights()) as source:
        yield OpenPayload(source=source, contents=Contents(read_datasets(source)), archive=archive)


def read_description(path: Path) -> dict[str, Any]:
    """Return the JSON that a payload says of itself.

    Raises:
        CorruptPayloadError: It is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.description()


def read_layout(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype name of each variable by its path; also of files that Keras wrote itself.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.layout()


def read_documents(path: Path) -> dict[str, bytes]:
    """Return the members of a ``.keras`` archive beside the weights; nothing for other formats.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.documents()


def read_state(path: Path) -> TrainingState | None:
    """Return the training state, checked against its digests, or None where a payload carries none.

    Raises:
        CorruptPayloadError: It is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.state()


def _state_array(
    source: RandomAccessFile, found: StoredDataset, name: str, entry: Mapping[str, Any]
) -> Array:
    what = f"training state {name!r}"
    if list(found.shape) != entry["shape"] or found.kind.dtype.name != entry["dtype"]:
        raise source.corrupt(f"{what} is not what its description says")
    return values_of(source, found, _checked(source, found, entry["digest"], what))


def _checked(source: RandomAccessFile, found: StoredDataset, digest: str, what: str) -> Array:
    data = read_bytes(source, found)
    if digest_of(data.data) != digest:
        raise source.corrupt(f"{what} differs from its digest")
    return data


@contextmanager
def open_variables(path: Path) -> Iterator[Mapping[str, Array]]:
    """Give a payload's variables by path; each is read when it is asked for, straight into its own memory.

    The values are not checked against their digests: whoever has checked the file's own digest need not.

    Raises:
        CorruptPayloadError: It is missing or damaged.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    with open_payload(path) as payload:
        yield payload.variables()


class _Variables(Mapping[str, Array]):
    def __init__(self, payload: OpenPayload, looked_at: Collection[str]) -> None:
        self._payload = payload
        self._looked_at = looked_at

    def __getitem__(self, name: str) -> Array:
        get = view_array if name in self._looked_at else read_array
        return get(self._payload.source, self._payload.contents.variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._payload.contents.variables)

    def __len__(self) -> int:
        return len(self._payload.contents.variables)
