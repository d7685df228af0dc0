"""Reader of payloads, ours and Keras' own: an HDF5 file, or the one inside a ``.keras`` archive without unpacking."""

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
    """An open payload: its HDF5 file, the contents of that file, and the archive around it, if there is one."""

    source: RandomAccessFile
    contents: Contents
    archive: KerasArchive | None

    def description(self) -> dict[str, Any]:
        """Return the description inside the payload."""
        found = self.contents.description
        if found is None:
            raise self.source.corrupt("it carries no description; ckptstore did not write it")
        return parse_description(self.source, read_bytes(self.source, found).tobytes())

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype name of each variable, by path."""
        found = self.contents.variables.items()
        return {name: (variable.shape, variable.kind.dtype.name) for name, variable in found}

    def documents(self) -> dict[str, bytes]:
        """Return the members of the archive other than the weights; empty for other formats."""
        return {} if self.archive is None else self.archive.documents()

    def state(self) -> TrainingState | None:
        """Return the training state, checked against its digests, or None if there is none."""
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

    def variables(self, as_views: Collection[str] = ()) -> Mapping[str, Array]:
        """Return the variables by path, valid while the payload is open; each is read on access.

        Args:
            as_views: Paths of variables that the caller copies at once: it gets views of the file instead of copies.
        """
        return _Variables(self, as_views)


# Suffix that makes a name in quarantine unique.
_NUMBER = re.compile(r"\.[0-9]+$")


@contextmanager
def open_payload(path: Path) -> Iterator[OpenPayload]:
    """Open a payload and list its contents.

    Raises:
        CorruptPayloadError: The file is missing or damaged, or is not a payload.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_random_access(path) as file, _listed(file) as payload:
        yield payload


@contextmanager
def open_verified(
    path: Path, *, nbytes: int, digest: str, progress: Callable[[int], object] | None = None
) -> Iterator[OpenPayload]:
    """Open a payload, verify its size and digest, then list its contents.

    Everything that is read afterwards comes from the very file that was verified, even if its name is reused.

    Args:
        path: The payload.
        nbytes: The size that it must have.
        digest: The digest that it must have.
        progress: Called with the number of bytes of each part that was digested.

    Raises:
        CorruptPayloadError: The file is missing, differs in size or digest, or is not a payload.
        StorageError: It cannot be read, which does not mean that it is damaged.
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
    """Return the description inside a payload.

    Raises:
        CorruptPayloadError: The file is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.description()


def read_layout(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype name of each variable, by path; works for files that Keras wrote, too.

    Raises:
        CorruptPayloadError: The file is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.layout()


def read_documents(path: Path) -> dict[str, bytes]:
    """Return the members of a ``.keras`` archive other than the weights; empty for other formats.

    Raises:
        CorruptPayloadError: The file is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(path) as payload:
        return payload.documents()


def read_state(path: Path) -> TrainingState | None:
    """Return a payload's training state, checked against its digests, or None if there is none.

    Raises:
        CorruptPayloadError: The file is missing or damaged, or was not written by ckptstore.
        StorageError: It cannot be read, which does not mean that it is damaged.
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
    """Open a payload and yield its variables by path; each is read on access, straight into its own memory.

    The values are not checked against their digests: check the digest of the whole file first.

    Raises:
        CorruptPayloadError: The file is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    with open_payload(path) as payload:
        yield payload.variables()


class _Variables(Mapping[str, Array]):
    def __init__(self, payload: OpenPayload, as_views: Collection[str]) -> None:
        self._payload = payload
        self._as_views = as_views

    def __getitem__(self, name: str) -> Array:
        get = view_array if name in self._as_views else read_array
        return get(self._payload.source, self._payload.contents.variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._payload.contents.variables)

    def __len__(self) -> int:
        return len(self._payload.contents.variables)
