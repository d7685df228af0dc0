"""`OpenSharded`: an open payload of several members, whose variables are put together one at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.contents import Contents, read_array, view_array
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import StoredDataset, read_datasets
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.formats.sharded import regions, verify_share
from ckptstore.formats.sharded.description import DESCRIPTION, DescribedVariable, parse
from ckptstore.formats.sharded.encoding import document_member
from ckptstore.formats.sharded.grid import Part
from ckptstore.formats.sharded.shards import Division, member_of
from ckptstore.formats.snapshot import TrainingState
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    from ckptstore.formats.payload_format import PayloadFormat


class OpenSharded:
    """Implementation of `ckptstore.formats.payload_format.OpenPayload`.

    A member is opened when something in it is asked for: a process reads those alone that hold its part of the model.

    Args:
        format: The format that reads it.
        member_format: That of its members.
        stored: The payload.

    Attributes:
        described: What ``description.json`` says.

    Raises:
        CorruptPayloadError: The description is missing or damaged.
        StorageError: It cannot be read.
    """

    def __init__(self, format: PayloadFormat, member_format: PayloadFormat, stored: StoredPayload) -> None:
        self.format = format
        self.stored = stored
        self.described = parse(stored.member(DESCRIPTION))
        self._member_format = member_format
        self._members: dict[int, Hdf5Payload] = {}
        self._opening = threading.Lock()

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for a damaged payload."""
        return self.stored.corrupt(reason)

    def is_described(self) -> bool:
        """Return True: nobody else writes such payloads."""
        return True

    def member(self, process: int) -> Hdf5Payload:
        """Return the member of a process, opened.

        Raises:
            CorruptPayloadError: It is missing, damaged, or has another size than the description says.
            StorageError: It cannot be read.
        """
        with self._opening:
            found = self._members.get(process)
            if found is None:
                found = self._members[process] = self._open(process)
            return found

    def _open(self, process: int) -> Hdf5Payload:
        name, saved = member_of(process), self.described.files[process].nbytes
        source = self.stored.member(name)
        if source.nbytes != saved:
            raise self.corrupt(f"{name}: it has {source.nbytes:,} bytes, {saved:,} were saved")
        with self._named(process):
            contents = Contents(read_datasets(source))
        return Hdf5Payload(format=self._member_format, source=source, contents=contents, archive=None)

    @contextmanager
    def _named(self, process: int) -> Iterator[None]:
        """Name the member in the error for a damaged one."""
        try:
            yield
        except CorruptPayloadError as error:
            raise self.corrupt(f"{member_of(process)}: {error.reason}") from error

    def member_description(self, process: int) -> dict[str, Any]:
        """Return the description inside a member: the digests of its parts and of its state."""
        member = self.member(process)
        with self._named(process):
            return member.description()

    def dataset(self, path: str, part: Part) -> tuple[Hdf5Payload, StoredDataset]:
        """Return where a part of a variable is stored.

        Raises:
            CorruptPayloadError: It is missing, or is not what the description says.
            StorageError: Its member cannot be read.
        """
        member, name = self.member(part.owner), f"{path}/{part.name}"
        found = member.contents.variables.get(name)
        if found is None:
            raise self.corrupt(f"{member_of(part.owner)}: {name} is missing")
        if (found.shape, found.kind.dtype.name) != (part.shape, self.described.variables[path].dtype):
            raise self.corrupt(
                f"{member_of(part.owner)}: {name} is {found.shape} {found.kind.dtype.name}, not as described"
            )
        return member, found

    def description(self) -> dict[str, Any]:
        """Return the description: the writer's fields, and a digest of each part.

        A variable of several parts has the digest of the list of their names and digests, one a line; the training
        state is that of process 0.
        """
        members = [self.member_description(process) for process in range(self.processes)]
        variables = {
            path: {
                "shape": list(variable.grid.shape),
                "dtype": variable.dtype,
                "digest": self._digest(path, variable, [member["variables"] for member in members]),
            }
            for path, variable in self.described.variables.items()
        }
        documents = dict(self.described.documents)
        return {
            **self.described.fields,
            "variables": variables,
            "documents": documents,
            "state": members[0]["state"],
        }

    def _digest(self, path: str, variable: DescribedVariable, members: Sequence[Mapping[str, Any]]) -> str:
        lines = []
        for part in variable.grid.parts():
            entry = members[part.owner].get(f"{path}/{part.name}")
            if entry is None:
                raise self.corrupt(f"{member_of(part.owner)}: {path}/{part.name} is missing")
            if variable.grid.is_whole:
                return str(entry["digest"])
            lines.append(f"{part.name} {entry['digest']}\n")
        return digest_of("".join(lines).encode())

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype name of each variable, by path."""
        found = self.described.variables.items()
        return {path: (variable.grid.shape, variable.dtype) for path, variable in found}

    def documents(self) -> dict[str, bytes]:
        """Return the documents, each checked against its digest."""
        found = {}
        for name, digest in self.described.documents.items():
            file = self.stored.member(document_member(name))
            found[name] = file.read(0, file.nbytes)
            if digest_of(found[name]) != digest:
                raise self.corrupt(f"{document_member(name)} differs from its digest")
        return found

    @property
    def processes(self) -> int:
        """The number of processes that wrote it."""
        return self.described.processes

    def state(self, process: int = 0) -> TrainingState | None:
        """Return the training state of a process, checked against its digests, or None if there is none.

        Raises:
            InvalidArgumentError: Fewer processes wrote the payload.
        """
        if not 0 <= process < self.processes:
            raise InvalidArgumentError(
                argument="process", value=process, reason=f"must be less than {self.processes}"
            )
        member = self.member(process)
        with self._named(process):
            return member.state()

    def variables(self, as_views: Collection[str] = ()) -> Mapping[str, Array]:
        """Return the variables by path, each put together on access.

        Args:
            as_views: Paths of variables that the caller copies at once: it gets views of the file where a variable
                is one part.
        """
        return _Variables(self, as_views)

    def read_region(self, path: str, start: Sequence[int], stop: Sequence[int], out: Array) -> None:
        """Read a region of a variable from the parts that it meets; see the interface.

        The values are not checked against their digests.
        """
        for part in self.described.variables[path].grid.parts_within(start, stop):
            first = tuple(map(max, start, part.start))
            last = tuple(map(min, stop, part.stop))
            member, dataset = self.dataset(path, part)
            place: tuple[Any, ...] = tuple(
                slice(a - s, b - s) for a, b, s in zip(first, last, start, strict=True)
            )
            regions.read_region(
                member.source,
                dataset,
                [a - s for a, s in zip(first, part.start, strict=True)],
                [b - s for b, s in zip(last, part.start, strict=True)],
                out[(*place, ...)],  # a view, of a scalar too
            )

    def verify_regions(self, regions: Iterable[verify_share.Region], *, process: int, processes: int) -> int:
        """Compare with their digests the parts that regions have whole, but for those of this process's share."""
        return verify_share.verify_regions(self, regions, process=process, processes=processes)

    def division(self) -> Division:
        """Return how it is divided among processes."""
        found = self.described.variables.items()
        return Division(
            sizes=tuple(written.nbytes for written in self.described.files),
            parts={path: len(variable.grid.owners) for path, variable in found},
            shardings={path: variable.sharding for path, variable in found if variable.sharding is not None},
        )

    def hdf5(self) -> AbstractContextManager[Any]:
        """Refuse: it is no HDF5 file.

        Raises:
            InvalidArgumentError: Always.
        """
        raise InvalidArgumentError(argument="payload", value=self.stored.name, reason="is no HDF5 file")


class _Variables(Mapping[str, Array]):
    def __init__(self, opened: OpenSharded, as_views: Collection[str]) -> None:
        self._opened = opened
        self._as_views = as_views

    def __getitem__(self, name: str) -> Array:
        opened, grid = self._opened, self._opened.described.variables[name].grid
        if grid.is_whole:
            (part,) = grid.parts()
            member, dataset = opened.dataset(name, part)
            get = view_array if name in self._as_views else read_array
            return get(member.source, dataset)
        # Every part is compared with its member before memory is taken for the whole.
        kinds = [opened.dataset(name, part)[1].kind for part in grid.parts()]
        found: Array = np.empty(grid.shape, kinds[0].dtype)
        opened.read_region(name, (0,) * found.ndim, found.shape, found)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.described.variables)

    def __len__(self) -> int:
        return len(self._opened.described.variables)
